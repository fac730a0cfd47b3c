"""A process of its own that writes registry hives through hivex; started by edit.py, never imported.

    /usr/bin/python3 -I hivex_writer.py FD      (Debian's Python: python3-hivex belongs to it)

FD is a memory file that holds a clean hive; it is edited there. The edits come as JSON on stdin, one after the other:
["set", key, value, type, hex data] | ["unset", key, value] | ["add", key] | ["remove", key].
Exit code 3: there is no hivex; 4: hivex refused (stderr says what). hivex is C, and the hive is a guest's: so it gets
only hives that hive.py found sound, runs as nobody where the service is root, starts no process and writes no file.
"""

import json
import resource
import sys
from collections.abc import Callable
from typing import Any

MEMORY_BYTES = 1 << 30
HIVE_BYTES = 256 << 20
CPU_SECONDS = 60


def main() -> int:
    for kind, limit in (
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_FSIZE, HIVE_BYTES),
        (resource.RLIMIT_CPU, CPU_SECONDS),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (limit, limit))
    try:
        import hivex  # type: ignore[import-not-found]  # of the system, not of our environment
    except ImportError:
        return 3
    try:
        hive = hivex.Hivex(f"/proc/self/fd/{int(sys.argv[1])}", write=True)
        for verb, *operands in json.load(sys.stdin):
            _VERBS[verb](hive, *operands)
        hive.commit(None)
    except (RuntimeError, OSError, MemoryError, LookupError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 4
    return 0


def _node(hive: Any, key: str, add: bool = False) -> Any:
    node = hive.root()
    for part in key.split("\\"):
        child = hive.node_get_child(node, part)
        if child is None:
            if not add:
                raise LookupError(f"no key {key}")
            child = hive.node_add_child(node, part)
        node = child
    return node


def _set(hive: Any, key: str, value: str, kind: int, data: str) -> None:
    hive.node_set_value(_node(hive, key), {"key": value, "t": kind, "value": bytes.fromhex(data)})


def _unset(hive: Any, key: str, value: str) -> None:
    node = _node(hive, key)
    kept = [item for item in hive.node_values(node) if hive.value_key(item).upper() != value.upper()]
    entries = []
    for item in kept:
        kind, data = hive.value_value(item)
        entries.append({"key": hive.value_key(item), "t": kind, "value": data})
    hive.node_set_values(node, entries)


def _add(hive: Any, key: str) -> None:
    _node(hive, key, add=True)


def _remove(hive: Any, key: str) -> None:
    hive.node_delete_child(_node(hive, key))


_VERBS: dict[str, Callable[..., None]] = {"set": _set, "unset": _unset, "add": _add, "remove": _remove}

if __name__ == "__main__":
    sys.exit(main())
