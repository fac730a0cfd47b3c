"""Changing a hive, with proof that nothing else in it changed.

hivex writes, in a process of its own (hivex_writer.py). Before it does, `Hive.walk` has found the hive sound; after,
the result is read back with our own reader and compared key by key and value by value with what was there before:
what differs must be precisely what was asked for.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from agent.protocol.errors import RecoveryError, ToolMissing
from recovery.repair.record import KeyChange
from recovery.repair.windows.bins import DamagedHive
from recovery.repair.windows.hive import Hive, Key, Value, join

_PYTHON = "/usr/bin/python3"
_WRITER = Path(__file__).with_name("hivex_writer.py")
_TIMEOUT_SECONDS = 120
_NOBODY = 65534
_OUR_FAULT = "nothing was changed; this is a fault of ours or of hivex: report it with the hive"

# (key, value's name or None for the key itself) -> before and after, as a KeyChange has them
_State = tuple[int, bytes] | bool | None
Difference = dict[tuple[str, str | None], tuple[_State, _State]]


def missing_for_hives() -> list[str]:
    """The package without which no hive can be changed."""
    try:
        done = subprocess.run([_PYTHON, "-I", "-c", "import hivex"], capture_output=True, check=False)
    except OSError:
        return ["python3-hivex"]
    return ["python3-hivex"] if done.returncode else []


def apply(hive: Hive, changes: Sequence[KeyChange]) -> Hive:
    """A hive with these changes made, in their order; the given one stays as it is.

    Raises RecoveryError when a change does not fit the hive, hivex refuses, or the result differs from the hive in
    anything but the changes; DamagedHive for a hive that is not sound; ToolMissing without hivex."""
    if not changes:
        return hive
    hive.check()  # hivex must not be given what our reader has not found sound
    written = _write(hive, [_command(change) for change in changes])
    try:
        result = Hive(hive.name, written)
        found = difference(hive, result)
    except DamagedHive as error:
        raise RecoveryError(f"what hivex wrote is not sound: {error.message}", _OUR_FAULT) from error
    wanted = _wanted(changes)
    odd = [where for where in {**found, **wanted} if found.get(where) != wanted.get(where)]
    if odd:
        raise RecoveryError(
            f"after writing the registry hive {hive.name}, {odd[0][0]} is not as it should be",
            _OUR_FAULT,
        )
    _check_lookup(hive.name, result, changes)
    return result


def difference(before: Hive, after: Hive) -> Difference:
    """All that differs between two hives, keys' flags, classes, times and security descriptors included.

    Raises DamagedHive if either is not sound, RecoveryError if a key that both have differs in itself."""
    found: Difference = {}
    used_before, used_after = before.all_unused(), after.all_unused()
    pending: list[tuple[str, Key | None, Key | None]] = [("", before.root, after.root)]
    while pending:
        path, old, new = pending.pop()
        if old and new and not old.same_frame(new):
            raise RecoveryError(f"{before.name}\\{path} has other flags, times or rights than it had")
        if not (old and new):
            found[path, None] = (old is not None, new is not None)
        old_values = before.values(old, used_before) if old else []
        new_values = after.values(new, used_after) if new else []
        if old_values != new_values:
            found.update(_values_difference(path, old_values, new_values))
        old_keys = {key.name.upper(): key for key in (before.subkeys(old, used_before) if old else ())}
        new_keys = {key.name.upper(): key for key in (after.subkeys(new, used_after) if new else ())}
        for name in {**old_keys, **new_keys}:
            was, is_now = old_keys.get(name), new_keys.get(name)
            pending.append((join(path, (is_now or was or before.root).name), was, is_now))
    return found


def _values_difference(
    path: str, before: list[Value], after: list[Value]
) -> Iterator[tuple[tuple[str, str], tuple[_State, _State]]]:
    old = {value.name: (value.type, value.data) for value in before}
    new = {value.name: (value.type, value.data) for value in after}
    if old == new:
        return
    for name in {**old, **new}:
        if old.get(name) != new.get(name):
            yield (path, name), (old.get(name), new.get(name))


def _wanted(changes: Sequence[KeyChange]) -> Difference:
    """What the changes come to, one after the other."""
    total: Difference = {}
    for change in changes:
        first = total.get((change.key, change.value), (change.before, change.after))[0]
        total[change.key, change.value] = (first, change.after)
    return {where: states for where, states in total.items() if states[0] != states[1]}


def _check_lookup(name: str, hive: Hive, changes: Sequence[KeyChange]) -> None:
    """Windows finds subkeys by bisection and hash, and sizes its buffers by a key's largest entries."""
    touched = {change.key for change in changes}
    touched |= {key.rpartition("\\")[0] for key in touched}
    for path in sorted(touched):
        key = hive.key(path)
        if key and not (hive.is_ordered(key) and _announces(key, hive.values(key), hive.subkeys(key))):
            raise RecoveryError(
                f"after writing the registry hive {name}, Windows would not find what is below {path}",
                _OUR_FAULT,
            )


def _announces(key: Key, values: list[Value], subkeys: list[Key]) -> bool:
    return (
        key.largest[0] >= max((2 * len(child.name) for child in subkeys), default=0)
        and key.largest[1] >= max((2 * len(value.name) for value in values), default=0)
        and key.largest[2] >= max((len(value.data) for value in values), default=0)
    )


def _command(change: KeyChange) -> list[str | int]:
    if change.value is None:
        return ["add" if change.after is True else "remove", change.key]
    if isinstance(change.after, tuple):
        return ["set", change.key, change.value, change.after[0], change.after[1].hex()]
    return ["unset", change.key, change.value]


def _write(hive: Hive, commands: list[list[str | int]]) -> bytes:
    file = os.memfd_create(f"hive-{hive.name}")
    try:
        with open(file, "wb", closefd=False) as out:
            out.write(hive.content)
        nobody = _NOBODY if os.geteuid() == 0 else None
        done = subprocess.run(
            [_PYTHON, "-I", "-c", _WRITER.read_text(), str(file)],
            input=json.dumps(commands).encode(),
            capture_output=True,
            pass_fds=(file,),
            env={},
            cwd="/",
            user=nobody,
            group=nobody,
            extra_groups=() if nobody else None,
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
        if done.returncode == 3:
            raise ToolMissing("hivex is needed to repair Windows", "install it: apt-get install python3-hivex")
        if done.returncode:
            reason = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or [f"code {done.returncode}"]
            raise RecoveryError(f"hivex cannot write the registry hive {hive.name}: {reason[0]}", "nothing was changed")
        with open(file, "rb", closefd=False) as changed:
            changed.seek(0)
            return changed.read()
    except FileNotFoundError as error:
        raise ToolMissing(f"{_PYTHON} is needed to repair Windows", "apt-get install python3-hivex") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RecoveryError(
            f"the registry hive {hive.name} could not be written: {error}", "nothing was changed"
        ) from error
    finally:
        os.close(file)
