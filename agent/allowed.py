"""Commands that the service may have run on this server: by name, as this server's own configuration says.

What a name stands for is written here, by `understudy-agent allow`; there is none at first. The service sends a name
and nothing else, so it cannot run what this server's administrator did not choose.
"""

from __future__ import annotations

import json
import re
import subprocess

from agent.files import write_whole
from agent.protocol.errors import Conflict, RecoveryError, UsageError
from agent.state import State

FILE = "allowed.json"
LIMIT_SECONDS = 60.0
OUTPUT_BYTES = 4096
_NAME = re.compile(r"[\w-][\w.-]{0,99}")


def allowed(state: State) -> dict[str, list[str]]:
    """Name -> command and arguments. Raises UsageError (the file is damaged)."""
    path = state.folder / FILE
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}", "repair it, or remove it and allow anew") from None
    if not isinstance(found, dict) or not all(_is_command(command) for command in found.values()):
        raise UsageError(f"{path} is damaged", "remove it and allow anew")
    return found


def allow(state: State, name: str, command: list[str]) -> None:
    """An empty command takes the permission away. Raises UsageError."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} cannot be a command's name", "use letters, digits, dot, dash, underscore")
    commands = allowed(state)
    if command:
        commands[name] = command
    elif commands.pop(name, None) is None:
        raise UsageError(f"no command {name!r} is allowed here", "see: understudy-agent allow")
    state.make()
    write_whole(state.folder / FILE, json.dumps(commands, indent=1).encode())


def run_allowed(state: State, name: str | None) -> str:
    """Run it to its end; the end of its output. Raises Conflict (not allowed here), RecoveryError (it failed)."""
    command = allowed(state).get(name or "")
    if command is None:
        raise Conflict(
            f"this server allows no command {name!r}", f"there, as root: understudy-agent allow {name} -- COMMAND"
        )
    try:
        ended = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=LIMIT_SECONDS,
            check=False,
        )
    except OSError as error:
        raise RecoveryError(f"{name} cannot be run: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise RecoveryError(f"{name} took longer than {LIMIT_SECONDS:g} s") from None
    output = ended.stdout[-OUTPUT_BYTES:].decode(errors="replace").replace("\0", "").strip()
    if ended.returncode:
        raise RecoveryError(f"{name} ended with exit status {ended.returncode}: {output[-300:]}".rstrip(": "))
    return output


def _is_command(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(word, str) for word in value)
