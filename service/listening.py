"""The address that the service listens on, and strangers who knock there."""

from __future__ import annotations

import logging
import socket

from aiohttp.http_exceptions import HttpProcessingError

from agent.protocol.congestion import prefer_bbr
from agent.protocol.errors import UsageError


def listen(host: str, port: int) -> socket.socket:
    """Take the address; nothing answers there yet. Raises UsageError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family)
    except OSError as error:
        raise UsageError(
            f"cannot listen on {host}:{port}: {error.strerror}", "choose another: --listen HOST:PORT"
        ) from None
    prefer_bbr(listening)
    return listening


def in_one_line(record: logging.LogRecord) -> bool:
    """What is no HTTP (a port scanner's greeting) is worth a line in the log, and no traceback."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, HttpProcessingError):
        record.exc_info = None
        record.msg = f"{record.msg}: it is no HTTP ({type(error).__name__})"
        record.levelno, record.levelname = logging.INFO, "INFO"
    return True


def in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
