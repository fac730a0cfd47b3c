"""Changes to a hive, gathered before any is made: what reads through a draft sees what the hive would become."""

from __future__ import annotations

from collections.abc import Sequence

from recovery.repair.record import KeyChange
from recovery.repair.windows.edit import apply
from recovery.repair.windows.hive import Hive, Value, join

SZ, EXPAND_SZ, BINARY, DWORD, MULTI_SZ = 1, 2, 3, 4, 7

_Place = tuple[str, str]


class HiveDraft:
    """A hive that does not change yet. `path` is its file in the guest, which the changes name it by.

    Letter case does not matter in keys' and values' names; changes name what exists as it is spelt there.
    """

    def __init__(self, path: str, hive: Hive) -> None:
        self.path = path
        self._hive = hive
        self._changes: list[KeyChange] = []
        self._values: dict[_Place, Value | None] = {}
        self._keys: dict[str, bool] = {}

    @property
    def changes(self) -> tuple[KeyChange, ...]:
        """In the order they are to be made: a key before its values, and a removed one after them."""
        return tuple(self._changes)

    def result(self) -> Hive:
        """The hive with the changes made. Raises as edit.apply does."""
        return apply(self._hive, self._changes)

    def has_key(self, key: str) -> bool:
        return self._keys.get(key.upper(), self._hive.key(key) is not None)

    def value(self, key: str, name: str) -> Value | None:
        place = key.upper(), name.upper()
        return self._values[place] if place in self._values else self._hive.value(key, name)

    def dword(self, key: str, name: str) -> int | None:
        value = self.value(key, name)
        return int.from_bytes(value.data, "little") if value and value.type == DWORD and len(value.data) == 4 else None

    def text(self, key: str, name: str) -> str:
        """A string's text; empty if there is none."""
        value = self.value(key, name)
        if value is None or value.type not in (SZ, EXPAND_SZ):
            return ""
        return value.data.decode("utf-16-le", "replace").split("\0")[0]

    def values(self, key: str) -> list[Value]:
        found = self._hive.key(key)
        now = {value.name.upper(): value for value in (self._hive.values(found) if found else ())}
        for (place, name), changed in self._values.items():
            if place == key.upper():
                now.pop(name, None)
                if changed:
                    now[name] = changed
        return list(now.values())

    def subkeys(self, key: str) -> list[str]:
        """Names, sorted."""
        found = self._hive.key(key)
        names = {child.name.upper(): child.name for child in (self._hive.subkeys(found) if found else ())}
        for place, exists in self._keys.items():
            parent, _, name = place.rpartition("\\")
            if parent == key.upper():
                names.setdefault(name, name)
                if not exists:
                    del names[name]
        return sorted(names.values())

    def set(self, key: str, name: str, kind: int, data: bytes, why: str) -> None:
        """Give a value this content, and make the key it is in. What is so already is no change."""
        self.add_key(key, why)
        before = self.value(key, name)
        if before is None or (before.type, before.data) != (kind, data):
            self._change(key, Value(before.name if before else name, kind, data), before, why)

    def set_dword(self, key: str, name: str, number: int, why: str) -> None:
        self.set(key, name, DWORD, number.to_bytes(4, "little"), why)

    def set_text(self, key: str, name: str, text: str, why: str, kind: int = SZ) -> None:
        """For MULTI_SZ, `text` is the one string of the list."""
        self.set(key, name, kind, (text + ("\0\0" if kind == MULTI_SZ else "\0")).encode("utf-16-le"), why)

    def unset(self, key: str, name: str, why: str) -> None:
        before = self.value(key, name)
        if before is not None:
            self._change(key, None, before, why)

    def add_key(self, key: str, why: str) -> None:
        """With the keys above it. There already: no change."""
        parent, _, _ = key.rpartition("\\")
        if self.has_key(key):
            return
        if parent:
            self.add_key(parent, why)
        self._changes.append(self._key_change(key, before=False, after=True, why=why))
        self._keys[key.upper()] = True

    def remove_key(self, key: str, why: str) -> None:
        """With all that is in it, each value of which is a change of its own."""
        if not self.has_key(key):
            return
        for child in self.subkeys(key):
            self.remove_key(join(key, child), why)
        for value in self.values(key):
            self.unset(key, value.name, why)
        self._changes.append(self._key_change(key, before=True, after=False, why=why))
        self._keys[key.upper()] = False

    def _change(self, key: str, after: Value | None, before: Value | None, why: str) -> None:
        name = after.name if after else before.name if before else ""
        self._values[key.upper(), name.upper()] = after
        self._changes.append(
            KeyChange(
                hive=self.path,
                key=self._spelt(key),
                value=name,
                before=(before.type, before.data) if before else None,
                after=(after.type, after.data) if after else None,
                why=why,
            )
        )

    def _key_change(self, key: str, *, before: bool, after: bool, why: str) -> KeyChange:
        return KeyChange(hive=self.path, key=self._spelt(key), value=None, before=before, after=after, why=why)

    def _spelt(self, path: str) -> str:
        """The path as the hive spells it, as far as it exists there."""
        key, spelt = self._hive.root, ""
        parts = path.split("\\")
        for number, part in enumerate(parts):
            child = next((child for child in self._hive.subkeys(key) if child.name.upper() == part.upper()), None)
            if child is None:
                added = {change.key.upper(): change.key for change in self._changes if change.value is None}
                rest = join(spelt, "\\".join(parts[number:]))
                return added.get(rest.upper(), rest)
            key, spelt = child, join(spelt, child.name)
        return spelt


def undo(draft: HiveDraft, changes: Sequence[KeyChange]) -> tuple[list[str], list[str]]:
    """Draft the way back of these changes; (what it undoes, what somebody else changed since and so is left)."""
    undone: list[str] = []
    left: list[str] = []
    why = "boot repair is undone"
    for change in reversed(changes):
        name = join(change.key, change.value) if change.value is not None else change.key
        if change.value is None:
            if draft.has_key(change.key) is change.before:
                continue  # the guest took it back itself
            if change.before is True:
                draft.add_key(change.key, why)
            elif draft.subkeys(change.key) or draft.values(change.key):
                left.append(f"{draft.path}\\{name}: there is more in it now")
                continue
            else:
                draft.remove_key(change.key, why)
        else:
            found = draft.value(change.key, change.value)
            now = (found.type, found.data) if found else None
            if now == change.before:
                continue
            if now != change.after:
                left.append(f"{draft.path}\\{name}: it was changed since")
                continue
            if isinstance(change.before, tuple):
                draft.set(change.key, change.value, *change.before, why)
            else:
                draft.unset(change.key, change.value, why)
        undone.append(f"{draft.path}\\{name}")
    return undone, left
