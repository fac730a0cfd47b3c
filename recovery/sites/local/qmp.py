"""QEMU's monitor (QMP), as far as it is needed: a connection for each command."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from io import BufferedRWPair
from pathlib import Path
from typing import Any

from agent.protocol.errors import SiteError

_ANSWER_SECONDS = 10.0


def execute(path: Path, command: str, **arguments: Any) -> Any:
    """Run one command over the monitor's socket; returns its result. Raises SiteError."""
    try:
        with _connection(path) as stream:
            json.loads(stream.readline())  # the greeting
            _run(stream, "qmp_capabilities", {})
            return _run(stream, command, arguments)
    except (OSError, ValueError) as error:
        raise SiteError(
            f"the monitor of {path.parent.name} does not answer {command}: {error}", "end the instance, and launch anew"
        ) from error


@contextlib.contextmanager
def _connection(path: Path) -> Iterator[BufferedRWPair]:
    # through the folder's descriptor: a socket's path has at most 108 bytes, a service's data folder may have more
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.settimeout(_ANSWER_SECONDS)
            monitor.connect(f"/proc/self/fd/{folder}/{path.name}")
            with monitor.makefile("rwb") as stream:
                yield stream
    finally:
        os.close(folder)


def _run(stream: BufferedRWPair, command: str, arguments: dict[str, Any]) -> Any:
    stream.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
    stream.flush()
    while line := stream.readline():
        answer = json.loads(line)
        if "return" in answer:
            return answer["return"]
        if "error" in answer:
            raise ValueError(answer["error"].get("desc", "refused"))
    raise ConnectionResetError("it closed the line")
