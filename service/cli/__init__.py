"""`understudy`: the command line of the service's side."""

from service.cli.parser import main

__all__ = ["main"]
