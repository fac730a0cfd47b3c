"""Which commands there are and what they take; the one place where errors become one line and an exit status."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import sys
from pathlib import Path

from agent.protocol.errors import UnderstudyError
from service.cli.output import harmless
from service.cli.registering import Commands, with_examples
from service.cli.text import at_least_one, host_and_port

OURS = ("agent", "recovery", "service")
_WHOLE_INSTALL = "this is the agent's install; for the service: pip install 'understudy[service]'"


def main(arguments: list[str] | None = None) -> int:
    """Runs one command. Returns 0, 1 (it failed: one line on stderr) or 2 (wrong usage)."""
    words = sys.argv[1:] if arguments is None else arguments
    parser = build_parser(next(iter(words), ""))
    # Not as defaults: parsers share their options' actions, and a command's would undo what was said before it.
    options = parser.parse_args(arguments, argparse.Namespace(json=False, tenant=None))
    asks = getattr(options, "confirms", False) and not (
        options.yes or getattr(options, "dry_run", False) or getattr(options, "drill", False)
    )
    if asks and not sys.stdin.isatty():
        parser.error("nobody is here to confirm this: say --yes (or --dry-run to see the steps)")
    misused = getattr(options, "misused", None)
    if misused is not None and (wrong := misused(options)):
        parser.error(wrong)
    try:
        options.run(options)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in OURS:
            raise
        print(f"understudy: the Python package {error.name} is not installed ({_WHOLE_INSTALL})", file=sys.stderr)
        return 1
    except UnderstudyError as error:
        print(harmless(f"understudy: {error}".replace("\n", " ")), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "understudy: interrupted; what the service was asked to do goes on there (see: understudy runs)",
            file=sys.stderr,
        )
        return 130
    except BrokenPipeError:
        return 1
    return 0


def _serve(options: argparse.Namespace) -> None:
    gc.disable()  # nothing is garbage until it serves: a tenth of the time that a killed service's runs wait for
    from service.serve import ServeOptions, serve  # half a second of imports that no other command needs

    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s level=%(levelname)s logger=%(name)s %(message)s", stream=sys.stderr
    )
    logging.getLogger("alembic").setLevel(logging.WARNING)
    os.umask(0o077)  # what is kept are servers' disks, and the folder may have been made for all to read
    host, port = options.listen
    serve(
        ServeOptions(
            data=Path(options.data),
            host=host,
            port=port,
            site=options.site,
            database=options.database,
            interval_seconds=options.interval_seconds,
            keep=options.keep,
            keep_evidence_days=options.keep_evidence_days,
        )
    )


def build_parser(first_word: str = "") -> argparse.ArgumentParser:
    """With all commands, or with the one that is meant where that needs none of the others' imports."""
    shared = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    shared.add_argument("--data", metavar="DIR", help="the data folder of a service on this machine")
    shared.add_argument("--url", help="the service's URL (else UNDERSTUDY_URL)")
    shared.add_argument("--token", help="an operator's token (else UNDERSTUDY_TOKEN)")
    shared.add_argument("--tenant", metavar="T", help="in whose name (else: default)")
    shared.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    parser = argparse.ArgumentParser(
        prog="understudy",
        description="Cloud disaster recovery: what is protected, how recent it is, and the button.",
        parents=[shared],
        **with_examples("serve --data /var/lib/understudy", "servers", "panic web01 --drill", "panic --help"),
    )
    commands = Commands(parser, shared)

    serve = commands.add(
        "serve", _serve, "run the service: control plane and receiver", "serve --data /var/lib/understudy"
    )
    serve.add_argument("--listen", metavar="HOST:PORT", type=host_and_port, default=("127.0.0.1", 8470))
    serve.add_argument("--site", choices=("local", "aws"), default="local", help="where replicas live and boot")
    serve.add_argument("--database", metavar="URL", help="default: SQLite in the data folder")
    serve.add_argument("--interval-seconds", metavar="N", type=at_least_one, default=300, help="between pushes")
    serve.add_argument("--keep", metavar="N", type=at_least_one, default=48, help="points kept of each server")
    serve.add_argument(
        "--keep-evidence-days", metavar="N", type=at_least_one, default=400, help="after a drill has ended"
    )
    serve.set_defaults(needs_data=True)
    if first_word != "serve":
        from service.cli.commands import register

        register(commands)
    return parser
