"""What a copy of a server calls itself: never as the server does. Pure."""

from __future__ import annotations

import re

from agent.protocol.errors import UsageError

DEFAULT_PATTERN = "{server}-clone-{copy}"
_LONGEST, _LONGEST_OF_WINDOWS = 63, 15
_SERVER, _COPY = "{server}", "{copy}"
_HOST_NAME = re.compile(r"(?!\d+$)[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?")


def copy_name(pattern: str, server: str, copy: int, *, windows: bool) -> str:
    """The host name of a server's copy, which counts from 1; `{server}` and `{copy}` of the pattern are filled in.

    A name that would be too long keeps the end of the server's, where names differ. Raises UsageError."""
    longest = _LONGEST_OF_WINDOWS if windows else _LONGEST
    its = re.sub(r"[^A-Za-z0-9]+", "-", server).strip("-") or "server"
    others = len(pattern.replace(_SERVER, "").replace(_COPY, str(copy)))
    room = (longest - others) // max(pattern.count(_SERVER), 1)
    name = pattern.replace(_SERVER, its[-room:].strip("-") if room > 0 else "").replace(_COPY, str(copy))
    if len(name) > longest or not _HOST_NAME.fullmatch(name):
        whose = "a Windows' name" if windows else "a host name"
        raise UsageError(
            f"{name[:100]!r} cannot be {whose}: letters, digits and dashes, {longest} at most",
            f"say it like --host-name 'test-{_COPY}'; without it: {DEFAULT_PATTERN}",
        )
    return name
