"""A YAML text's nodes with their places, each read as one type or refused with its line."""

from __future__ import annotations

from collections.abc import Collection

import yaml

from agent.protocol.errors import UsageError

MAX_TEXT_CHARACTERS = 256 * 1024
DAY_SECONDS = 86_400.0
_INDENT_HINT = "check quotes, colons and indentation there"
_KINDS = {"str": "a text", "int": "a whole number", "float": "a number", "bool": "yes or no", "null": "nothing"}


def read_fields(text: str, source: str) -> Field:
    """The text's root. `source` is what errors call the text, a file's name. Raises UsageError."""
    if len(text) > MAX_TEXT_CHARACTERS:
        raise UsageError(f"{source}: longer than {MAX_TEXT_CHARACTERS} characters", "a plan is a small YAML text")
    try:
        root = yaml.compose(text, yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UsageError(f"{source}{line}: this is not YAML: {error.problem}", _INDENT_HINT) from error
    except (yaml.YAMLError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else "nested too deeply"
        raise UsageError(f"{source}: this is not YAML: {reason}", _INDENT_HINT) from error
    if root is None:
        raise UsageError(f"{source}: is empty", "begin with `plan: NAME` and `groups:`")
    return Field(root, source, "")


class Field:
    """A node of the YAML text with its place. Every method raises UsageError naming line and field."""

    def __init__(self, node: yaml.Node, source: str, path: str) -> None:
        self._node = node
        self._source = source
        self._path = path

    def error(self, message: str, hint: str) -> UsageError:
        place = f"{self._source}, line {self._node.start_mark.line + 1}"
        return UsageError(f"{place}: {self._path}: {message}" if self._path else f"{place}: {message}", hint)

    def mapping(self, required: Collection[str] = (), optional: Collection[str] = ()) -> dict[str, Field]:
        known = [*required, *optional]
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
        if not isinstance(self._node, yaml.MappingNode):
            raise self._wrong("fields (`name: value`)")
        pairs: list[tuple[Field, Field]] = []
        seen: set[str] = set()
        for key, value in self._node.value:
            name = str(key.value)
            if name in seen:
                raise Field(key, self._source, self._path).error(f"{name!r} is given twice", "keep one of the two")
            seen.add(name)
            path = f"{self._path}.{name}" if self._path else name
            pairs.append((Field(key, self._source, self._path), Field(value, self._source, path)))
        return pairs

    def items(self, *, empty: bool = False) -> list[Field]:
        if not isinstance(self._node, yaml.SequenceNode):
            raise self._wrong("a list (lines that begin with `- `)")
        if not self._node.value and not empty:
            raise self.error("is empty", "add at least one entry")
        return [Field(node, self._source, f"{self._path}[{at}]") for at, node in enumerate(self._node.value)]

    @property
    def is_mapping(self) -> bool:
        return isinstance(self._node, yaml.MappingNode)

    def text(self) -> str:
        if self._kind() != "str":
            raise self._wrong("a text", "put it in quotes if it is one")
        value = str(self._node.value)
        if not value or not value.isprintable():
            raise self.error(
                f"{value!r} is not a usable text", "use at least one character, and none that is invisible"
            )
        return value

    def yes(self) -> bool:
        if self._kind() != "bool":
            raise self._wrong("yes or no")
        return bool(yaml.safe_load(str(self._node.value)))

    def integer(self, low: int, high: int) -> int:
        if self._kind() != "int":
            raise self._wrong("a whole number")
        value = self._number()
        if not low <= value <= high:
            raise self.error(f"{self._node.value} is out of range", f"use {low} to {high}")
        return int(value)

    def amount(self, high: float) -> float:
        """Above 0."""
        if self._kind() not in ("int", "float"):
            raise self._wrong("a number")
        value = float(self._number())
        if not 0 < value <= high:  # also refuses not-a-number
            raise self.error(f"{self._node.value} is out of range", f"use up to {high:.0f}")
        return value

    def seconds(self, high: float = DAY_SECONDS) -> float:
        if self._kind() not in ("int", "float"):
            raise self._wrong("a number of seconds")
        return self.amount(high)

    def _number(self) -> int | float:
        try:
            value = yaml.safe_load(str(self._node.value))
        except (ValueError, yaml.YAMLError):
            value = None
        if not isinstance(value, int | float):  # an explicit tag promised more than the text keeps
            raise self.error("this number cannot be read", "write it in plain digits")
        return value

    def _kind(self) -> str:
        return self._node.tag.rpartition(":")[2] if isinstance(self._node, yaml.ScalarNode) else ""

    def _wrong(self, wanted: str, hint: str = "see `understudy plan show` for a plan that is right") -> UsageError:
        if isinstance(self._node, yaml.MappingNode):
            found = "fields"
        elif isinstance(self._node, yaml.SequenceNode):
            found = "a list"
        else:
            found = _KINDS.get(self._kind(), "something else")
        return self.error(f"should be {wanted}, and is {found}", hint)
