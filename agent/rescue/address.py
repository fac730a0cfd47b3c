"""Where the service is: as somebody types it, as the boot loader or the network says it. Pure."""

from __future__ import annotations

import ipaddress
import re
import urllib.parse

from agent.protocol.errors import UsageError

PORT = 8470
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")


def url_of(typed: str) -> str:
    """A service's URL from what a person types: a name or an address will do. Raises UsageError."""
    text = typed.strip().removesuffix("/")
    parts = urllib.parse.urlsplit(text if "://" in text else f"https://{_bracketed(text)}")
    try:
        host, port = parts.hostname, parts.port or PORT
    except ValueError:
        host, port = None, 0
    if parts.scheme != "https" or not host or not (_is_address(host) or _HOST.fullmatch(host)) or parts.path:
        raise UsageError(
            f"{typed[:60]!r} is no address of a service",
            f"type a name or an address, like dr.example.com or 192.0.2.7; a port, if it is not {PORT}, after a colon",
        )
    return f"https://{f'[{host}]' if ':' in host else host}:{port}"


def url_in(command_line: str) -> str | None:
    """`understudy.url=...` of the kernel's command line. Raises UsageError."""
    found = [word.partition("=")[2] for word in command_line.split() if word.startswith("understudy.url=")]
    return url_of(found[-1]) if found else None


def _bracketed(text: str) -> str:
    return f"[{text}]" if text.count(":") > 1 and not text.startswith("[") else text


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
