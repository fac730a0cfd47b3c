"""A YAML text's nodes with their places, each read as one type or refused with its line."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

import yaml

from agent.protocol.errors import UsageError

MAX_TEXT_CHARACTERS = 256 * 1024
MAX_VALUE_CHARACTERS = 1000
MAX_DEPTH = 30
MAX_ENTRIES = 100_000
"""Of all lists and fields together, each as often as an alias repeats it: a short text can say very much."""
DAY_SECONDS = 86_400.0
_INDENT_HINT = "check quotes, colons and indentation there"
_KINDS = {
    "str": "a text",
    "int": "a whole number",
    "float": "a number",
    "bool": "yes or no",
    "null": "nothing",
    "timestamp": "a time",
}
_PLAIN_DIGITS = re.compile(r"[-+]?(0|[1-9]\d{0,30})")


def read_fields(text: str, source: str) -> Field:
    """The text's root. `source` is what errors call the text, a file's name. Raises UsageError."""
    if len(text) > MAX_TEXT_CHARACTERS:
        raise UsageError(f"{source}: longer than {MAX_TEXT_CHARACTERS} characters", "a plan is a small YAML text")
    try:
        root = yaml.compose(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UsageError(f"{source}{line}: this is not YAML: {error.problem}", _INDENT_HINT) from error
    except yaml.reader.ReaderError as error:
        line = f", line {text.count(chr(10), 0, error.position) + 1}"
        what = f"character U+{ord(text[error.position]):04X} is not allowed"
        raise UsageError(f"{source}{line}: this is not YAML: {what}", "remove it") from error
    if root is None:
        raise UsageError(f"{source}: is empty", "begin with `plan: NAME` and `groups:`")
    return Field(root, _Document(source), "")


class _Loader(yaml.SafeLoader):
    """Composing calls itself for each level: what is nested too deeply is refused before the stack is full."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self._depth == MAX_DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]  # so its stub says
            raise yaml.composer.ComposerError(None, None, f"it is nested more than {MAX_DEPTH} levels deep", mark)
        self._depth += 1
        found = super().compose_node(parent, index)
        self._depth -= 1
        return found


@dataclass(slots=True)
class _Document:
    """`entries` counts those of lists and fields that were looked at."""

    source: str
    entries: int = 0


class Field:
    """A node of the YAML text with its place. Every method raises UsageError naming line and field."""

    def __init__(self, node: yaml.Node, document: _Document, path: str) -> None:
        self._node = node
        self._document = document
        self._path = path

    def error(self, message: str, hint: str) -> UsageError:
        place = f"{self._document.source}, line {self._node.start_mark.line + 1}"
        return UsageError(f"{place}: {self._path}: {message}" if self._path else f"{place}: {message}", hint)

    def mapping(self, required: Collection[str] = (), optional: Collection[str] = ()) -> dict[str, Field]:
        """What needs no field may be left empty."""
        known = [*required, *optional]
        if isinstance(self._node, yaml.ScalarNode) and (required or not self._is_nothing):
            raise self._wrong("fields (`name: value`)", _as_fields(self._node.value, required, optional))
        fields: dict[str, Field] = {}
        for key, value in self.pairs():
            name = key.text()
            if name not in known:
                raise key.error(f"there is no field {name!r} here", f"known are {', '.join(known)}")
            fields[name] = value
        missing = [name for name in required if name not in fields]
        if missing:
            raise self.error(f"{missing[0]!r} is missing", f"add `{missing[0]}: ...`")
        return fields

    def pairs(self) -> list[tuple[Field, Field]]:
        if self._is_nothing:
            return []
        if not isinstance(self._node, yaml.MappingNode):
            raise self._wrong("fields (`name: value`)")
        self._count(len(self._node.value))
        pairs: list[tuple[Field, Field]] = []
        seen: set[str] = set()
        for key, value in self._node.value:
            name = str(key.value)
            if key.tag.endswith(":merge"):
                raise Field(key, self._document, self._path).error("a plan has no `<<`", "write the fields out")
            if name in seen:
                raise Field(key, self._document, self._path).error(f"{name!r} is given twice", "keep one of the two")
            seen.add(name)
            path = f"{self._path}.{name}" if self._path else name
            pairs.append((Field(key, self._document, self._path), Field(value, self._document, path)))
        return pairs

    def items(self, *, empty: bool = False) -> list[Field]:
        if empty and self._is_nothing:
            return []
        if not isinstance(self._node, yaml.SequenceNode):
            alone = isinstance(self._node, yaml.ScalarNode) and not self._is_nothing
            hint = f"write `[{str(self._node.value)[:100]}]`" if alone else "write each entry on a line of its own"
            raise self._wrong("a list (lines that begin with `- `)", hint)
        if not self._node.value and not empty:
            raise self.error("is empty", "add at least one entry")
        self._count(len(self._node.value))
        return [Field(node, self._document, f"{self._path}[{at}]") for at, node in enumerate(self._node.value)]

    @property
    def is_mapping(self) -> bool:
        return isinstance(self._node, yaml.MappingNode)

    def text(self) -> str:
        if self._kind() != "str":
            raise self._wrong("a text", "put it in quotes if it is one")
        value = str(self._node.value)
        if len(value) > MAX_VALUE_CHARACTERS:
            raise self.error(f"is longer than {MAX_VALUE_CHARACTERS} characters", "shorten it")
        if not value or not value.isprintable():
            raise self.error(
                f"{value!r} is not a usable text", "use at least one character, and none that is invisible"
            )
        return value

    def yes(self) -> bool:
        if self._kind() != "bool":
            raise self._wrong("yes or no", "write yes or no, without quotes")
        return bool(yaml.safe_load(str(self._node.value)))

    def integer(self, low: int, high: int) -> int:
        if self._kind() != "int":
            raise self._wrong("a whole number", "write it in plain digits")
        value = self._number()
        if not low <= value <= high:
            raise self.error(f"{self._node.value} is out of range", f"use {low} to {high}")
        return int(value)

    def amount(self, high: float, *, zero: bool = False) -> float:
        """Above 0, or 0 where that means something."""
        if self._kind() not in ("int", "float"):
            raise self._wrong("a number", "write it in plain digits")
        value = float(self._number())
        if not ((zero and value == 0) or 0 < value <= high):  # also refuses not-a-number
            least = "0" if zero else "more than 0"
            raise self.error(f"{self._node.value} is out of range", f"use {least}, up to {high:.0f}")
        return value

    def seconds(self, high: float = DAY_SECONDS, *, zero: bool = False) -> float:
        if self._kind() not in ("int", "float"):
            raise self._wrong("a number of seconds", "write it in plain digits: 300, not 5m")
        return self.amount(high, zero=zero)

    def _number(self) -> int | float:
        """YAML reads 010 as eight and 10:20 as six hundred and twenty, which nobody means; and an explicit tag may
        promise more than the text keeps."""
        text = str(self._node.value)
        value = None
        if _PLAIN_DIGITS.fullmatch(text) if self._kind() == "int" else ":" not in text:
            try:
                value = yaml.safe_load(text)
            except (ValueError, yaml.YAMLError):
                value = None
        if not isinstance(value, int | float):
            raise self.error("this number cannot be read", "write it in plain digits")
        return value

    def _count(self, entries: int) -> None:
        self._document.entries += entries
        if self._document.entries > MAX_ENTRIES:
            raise self.error(f"by here the plan has more than {MAX_ENTRIES} entries", "make several plans of it")

    @property
    def _is_nothing(self) -> bool:
        return self._kind() == "null"

    def _kind(self) -> str:
        return self._node.tag.rpartition(":")[2] if isinstance(self._node, yaml.ScalarNode) else ""

    def _wrong(self, wanted: str, hint: str = "for one that is right: understudy plan show SERVER") -> UsageError:
        if isinstance(self._node, yaml.MappingNode):
            found = "fields"
        elif isinstance(self._node, yaml.SequenceNode):
            found = "a list"
        else:
            found = _KINDS.get(self._kind(), "something else")
        return self.error(f"should be {wanted}, and is {found}", hint)


def _as_fields(value: str, required: Collection[str], optional: Collection[str]) -> str:
    """How what was written as a text alone is written as fields."""
    if value in optional:
        return f"write `{value}: {{}}`"
    return f"write `{next(iter(required), next(iter(optional)))}: {value[:100] or '...'}`"
