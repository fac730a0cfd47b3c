"""What a boot repair found and changed: reviewable before, during and after, and enough to undo it.

Plain data and its one file, `repair.json`. Long contents (a boot archive, a driver) lie beside it under their BLAKE3.
"""

from __future__ import annotations

import base64
import contextlib
import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from blake3 import blake3

from agent.protocol.errors import StorageError
from recovery.sites.local.durable import make_folder, storage_errors, write_file

RECORD = "repair.json"
_INLINE_BYTES = 16 << 10
_VERSION = 1
_REGISTRY_TYPES = {1: "REG_SZ", 2: "REG_EXPAND_SZ", 3: "REG_BINARY", 4: "REG_DWORD", 7: "REG_MULTI_SZ"}

Level = Literal["stop", "warn", "ok"]


@dataclass(frozen=True, slots=True)
class Finding:
    """`stop` would not come up, `warn` may come up without something, `ok` was looked at. The same words as the
    agent's inventory. `repaired`: the changes of this record deal with it."""

    level: Level
    what: str
    way_out: str = ""
    repaired: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FileChange:
    """One file of the guest: its content before and after; None where it did not, or does not, exist.

    `path` is absolute, in the guest's own tree ("/boot/grub/grub.cfg"), or on its EFI partition ("esp:/EFI/BOOT/...").
    `kept_bytes`: the file's beginning that stays as it is; before and after are what follows. `mode` is a new file's.
    """

    path: str
    before: bytes | None
    after: bytes | None
    kept_bytes: int = 0
    mode: int = 0o644
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyChange:
    """One value of a Windows registry hive; `value` None: the key itself, which was added (before False, after True)
    or removed. A registry value is (type, data); None where it did not, or does not, exist."""

    hive: str
    key: str
    value: str | None
    before: tuple[int, bytes] | bool | None
    after: tuple[int, bytes] | bool | None
    why: str = ""


Change = FileChange | KeyChange


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairRecord:
    """`changes` in the order they were made; undone in the opposite order. No changes: the replica was ready.

    `system` is what was repaired, for people: "Debian GNU/Linux 12, ext4, BIOS".
    """

    system: str
    target: str
    findings: tuple[Finding, ...] = ()
    changes: tuple[Change, ...] = ()

    @property
    def bus(self) -> str:
        """How the disks of what it was repaired for are attached."""
        return self.target.partition(",")[0]

    @property
    def unrepaired(self) -> tuple[Finding, ...]:
        """What still stands in the way of a boot."""
        return tuple(finding for finding in self.findings if finding.level == "stop" and not finding.repaired)

    def diff(self) -> str:
        """The changes as people review them: unified diffs of texts, one line for what is no text."""
        lines = (line for change in self.changes for line in _lines(change))
        text = "".join(line if line.endswith("\n") else line + "\n" for line in lines)
        # they are a guest's: a terminal must not obey them
        return "".join(char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text)


@dataclass(slots=True)
class UndoReport:
    """What an undo did. `left`: changed by somebody else since the repair, so left as it is, with the reason."""

    undone: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


def save(record: RepairRecord, folder: Path) -> None:
    """Write it durably; `repair.json` appears last, whole or not at all. Raises StorageError."""
    with storage_errors(f"keep the record of the boot repair in {folder}"):
        make_folder(folder)
        document = {
            "version": _VERSION,
            "system": record.system,
            "target": record.target,
            "findings": [_finding_json(finding) for finding in record.findings],
            "changes": [_change_json(change, folder) for change in record.changes],
        }
        write_file(folder / RECORD, json.dumps(document, indent=1).encode())


def load(folder: Path) -> RepairRecord | None:
    """None where nothing was repaired. Raises StorageError if it cannot be read, or was altered."""
    try:
        document = json.loads((folder / RECORD).read_bytes())
        if document["version"] != _VERSION:
            raise StorageError(f"{folder / RECORD} was written by another version", "use the version that wrote it")
        return RepairRecord(
            system=document["system"],
            target=document["target"],
            findings=tuple(Finding(**finding) for finding in document["findings"]),
            changes=tuple(_change(entry, folder) for entry in document["changes"]),
        )
    except FileNotFoundError:
        if (folder / RECORD).exists():
            raise StorageError(f"{folder / RECORD} misses a file beside it", "restore the folder from a copy") from None
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{folder / RECORD} cannot be read: {error}", "restore it from a copy") from error


def _finding_json(finding: Finding) -> dict[str, Any]:
    return {
        "level": finding.level,
        "what": finding.what,
        "way_out": finding.way_out,
        "repaired": finding.repaired,
    }


def _change_json(change: Change, folder: Path) -> dict[str, Any]:
    if isinstance(change, FileChange):
        return {
            "path": change.path,
            "before": _content_json(change.before, folder),
            "after": _content_json(change.after, folder),
            "kept_bytes": change.kept_bytes,
            "mode": change.mode,
            "why": change.why,
        }
    return {
        "hive": change.hive,
        "key": change.key,
        "value": change.value,
        "before": _value_json(change.before),
        "after": _value_json(change.after),
        "why": change.why,
    }


def _change(entry: Mapping[str, Any], folder: Path) -> Change:
    if "hive" in entry:
        return KeyChange(**{**entry, "before": _value(entry["before"]), "after": _value(entry["after"])})
    before, after = _content(entry["before"], folder), _content(entry["after"], folder)
    return FileChange(**{**entry, "before": before, "after": after})


def _content_json(content: bytes | None, folder: Path) -> dict[str, str] | None:
    if content is None:
        return None
    if len(content) > _INLINE_BYTES:
        digest = blake3(content).hexdigest()
        write_file(folder / digest, content)
        return {"blake3": digest}
    try:
        return {"text": content.decode()}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(content).decode()}


def _content(document: Mapping[str, str] | None, folder: Path) -> bytes | None:
    if document is None:
        return None
    if "text" in document:
        return document["text"].encode()
    if "base64" in document:
        return base64.b64decode(document["base64"], validate=True)
    digest = document["blake3"]
    content = (folder / f"{int(digest, 16):064x}").read_bytes()
    if blake3(content).hexdigest() != digest:
        raise ValueError(f"{digest} beside it was altered")
    return content


def _value_json(value: tuple[int, bytes] | bool | None) -> list[Any] | bool | None:
    return [value[0], base64.b64encode(value[1]).decode()] if isinstance(value, tuple) else value


def _value(document: list[Any] | bool | None) -> tuple[int, bytes] | bool | None:
    return (int(document[0]), base64.b64decode(document[1], validate=True)) if isinstance(document, list) else document


def _lines(change: Change) -> Iterator[str]:
    if isinstance(change, KeyChange):
        name = change.key if change.value is None else f"{change.key}\\{change.value}"
        yield f"# {change.why}"
        for sign, content in (("-", change.before), ("+", change.after)):
            if content is not None and content is not False:
                yield f"{sign}{change.hive}\\{name} = {_shown(content)}"
        return
    yield f"# {change.why}"
    texts = [_text(content) for content in (change.before, change.after)]
    if change.kept_bytes or None in texts:
        sizes = ["none" if content is None else f"{len(content)} bytes" for content in (change.before, change.after)]
        after = f" after the first {change.kept_bytes} bytes" if change.kept_bytes else ""
        yield f"{change.path}: {sizes[0]} -> {sizes[1]}{after}"
        return
    before, after_text = texts[0] or "", texts[1] or ""
    names = [change.path if content is not None else "/dev/null" for content in (change.before, change.after)]
    yield from difflib.unified_diff(before.splitlines(True), after_text.splitlines(True), names[0], names[1], n=1)


def _text(content: bytes | None) -> str | None:
    """Empty for what does not exist; None for what is no text."""
    try:
        text = (content or b"").decode()
    except UnicodeDecodeError:
        return None
    return None if "\0" in text or len(text) > _INLINE_BYTES * 16 else text


def _shown(value: tuple[int, bytes] | bool | None) -> str:
    """A registry value in words: texts as texts, numbers as numbers."""
    if not isinstance(value, tuple):
        return "(key)"
    kind, data = value
    name = _REGISTRY_TYPES.get(kind, f"type {kind}")
    if name == "REG_DWORD" and len(data) == 4:
        return f"{name} {int.from_bytes(data, 'little')}"
    if name.endswith("_SZ"):
        with contextlib.suppress(UnicodeDecodeError):
            texts = data.decode("utf-16-le").rstrip("\0").split("\0")
            return f"{name} " + " ".join(f"'{text}'" for text in texts)
    return f"{name} {data.hex()}"
