"""Rows as the database gives them, looked at before anything believes them.

SQLite keeps no checksums and takes any value in any column: a bit that flips on its disk turns a number into a text, a
time into the year 10^200, JSON into none. Such a row is named, and the others are used.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from sqlalchemy import BigInteger, Boolean, Double, Integer, RowMapping, String, Table
from sqlalchemy.types import TypeEngine

from agent.protocol.errors import BadMessage, StorageError, UsageError

LAST_SECOND = 253_402_300_799
"""Of the year 9999: no time of ours is later, and no number with a fraction is larger."""
_HINT = "restore the database from a backup: docs/runbooks/lost-receiver.md"
_HINTS = {"points": "it is made again from the signed manifest: understudy verify --all --heal"}
_KINDS: tuple[tuple[type[TypeEngine[Any]], type], ...] = (
    (Boolean, bool),
    (Integer, int),
    (BigInteger, int),
    (String, str),
)

T = TypeVar("T")

log = logging.getLogger(__name__)


class NoJson:
    """What stands in a row where JSON should be, and is none."""


def text_of(raw: bytes) -> str:
    """SQLite's text, also where it is no UTF-8 any more: then it is seen to be damaged, and can be shown."""
    return raw.decode(errors="backslashreplace")


def json_of(text: Any) -> Any:
    try:
        return json.loads(text)
    except (ValueError, TypeError):
        return NoJson()


def read(table: Table, found: RowMapping, make: Callable[[dict[str, Any]], T]) -> T:
    """What `make` makes of a row. Raises StorageError, naming table and row, where it is not what it should be."""
    try:
        fields = dict(found)
        _check(table, fields)
        return make(fields)
    except (BadMessage, UsageError, ValueError, TypeError, KeyError) as error:
        key = ", ".join(str(found.get(column.name)) for column in table.primary_key)
        hint = _HINTS.get(table.name, _HINT)
        raise StorageError(f"table {table.name} of the database: the row of {key} is damaged: {error}", hint) from None


def readable(
    table: Table,
    rows: Iterable[RowMapping],
    make: Callable[[dict[str, Any]], T],
    instead: Callable[[RowMapping, StorageError], T | None] = lambda found, error: None,
) -> list[T]:
    """The same for many: one that is damaged takes no other along. `instead` may know what a damaged one should be."""
    made = []
    for found in rows:
        try:
            made.append(read(table, found, make))
        except StorageError as error:
            log.warning("%s", error)
            if (other := instead(found, error)) is not None:
                made.append(other)
    return made


@functools.cache
def _kinds(table: Table) -> tuple[tuple[str, type, bool, bool], ...]:
    """Of each column: its name, what Python has of it, whether it may be missing, whether it is a time or the like."""
    return tuple(
        (
            column.name,
            next((python for sql, python in _KINDS if isinstance(column.type, sql)), object),
            bool(column.nullable),
            isinstance(column.type, Double),
        )
        for column in table.c
    )


def _check(table: Table, fields: dict[str, Any]) -> None:
    for name, kind, may_be_missing, is_double in _kinds(table):
        value = fields.get(name)
        if value is None:
            if not may_be_missing and name in fields:
                raise ValueError(f"{name} is missing")
        elif isinstance(value, NoJson):
            raise TypeError(f"{name} is no JSON")
        elif is_double and not (isinstance(value, (int, float)) and 0 <= value <= LAST_SECOND):
            raise TypeError(f"{name} is {value!r}, and no number that it could be")
        elif not isinstance(value, kind):
            raise TypeError(f"{name} is {value!r}")
