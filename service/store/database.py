"""The engine, transactions, and the one place where the database's errors become ours.

SQLite is the default; queries are written for PostgreSQL as well (rows that are read to be changed are locked, which
SQLite does for the whole database: `write` takes its write lock at once, so that nothing read can change meanwhile).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

import sqlalchemy
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError, SQLAlchemyError

from agent.protocol.errors import Conflict, StorageError, StorageFull, UsageError
from service.store.reading import json_of, text_of

BUSY_SECONDS = 30
MOST_COMPLAINTS = 20
_DRIVERS = {"sqlite": "sqlite+pysqlite", "postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}
_BROKEN = "docs/runbooks/lost-receiver.md says how to make its file anew"
_URL_HINT = "examples: sqlite:////var/lib/understudy/understudy.sqlite, postgresql://user@host/understudy"


def sqlite_url(path: Path) -> str:
    return f"sqlite+pysqlite:///{path.resolve()}"


class Database:
    """Use `Database.open`: it also brings the tables up to date."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        if engine.dialect.name == "sqlite":
            event.listen(engine, "connect", _prepare_sqlite)
            event.listen(engine, "begin", _begin_sqlite)

    @classmethod
    def open(cls, url: str) -> Self:
        """Connect and migrate. Raises UsageError (the URL), StorageError (what it names)."""
        scheme, separator, rest = url.partition("://")
        full_url = _DRIVERS.get(scheme, scheme) + separator + rest
        try:
            database = cls(sqlalchemy.create_engine(full_url, pool_size=10, max_overflow=20, json_deserializer=json_of))
        except (ArgumentError, NoSuchModuleError):
            raise UsageError("the database URL cannot be understood", _URL_HINT) from None
        except ModuleNotFoundError as error:
            raise UsageError(
                f"the database URL needs the Python package {error.name}", "install it beside Understudy"
            ) from None
        database._migrate()
        return database

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """One transaction that changes nothing."""
        with self._translated(), self._engine.connect() as connection, connection.begin():
            yield connection

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction: durable when the block ends, undone when it raises."""
        with self._translated(), self._engine.connect() as connection:
            writing = connection.execution_options(understudy_writes=True)
            with writing.begin():
                yield writing

    def complaints(self) -> list[str]:
        """What is wrong with how SQLite keeps tables and indexes, in its own words; what rows say is not looked at.

        PostgreSQL sees to its own: nothing is said of it."""
        if self._engine.dialect.name != "sqlite":
            return []
        try:
            with self.read() as connection:
                found = connection.exec_driver_sql(f"PRAGMA integrity_check({MOST_COMPLAINTS})").scalars().all()
        except StorageError as error:
            return [error.message]
        return [line for text in found if text != "ok" for line in text.splitlines() if not line.startswith("***")]

    def index_anew(self) -> None:
        """Make every index of SQLite's from the rows that there are."""
        with self.write() as connection:
            connection.exec_driver_sql("REINDEX")

    def close(self) -> None:
        self._engine.dispose()

    def _migrate(self) -> None:
        with self.read() as connection:
            if _revision(connection) == _newest_revision():
                return

        import alembic.command  # a tenth of a second, for what a service that was killed does not wait
        import alembic.config
        from alembic.util.exc import CommandError

        config = alembic.config.Config()
        config.set_main_option("script_location", str(files("service.store") / "migrations"))
        config.set_main_option("path_separator", "os")
        with self.write() as connection:
            config.attributes["connection"] = connection
            try:
                alembic.command.upgrade(config, "head")
            except CommandError as error:
                raise StorageError(
                    f"the database's tables cannot be brought up to date: {error}",
                    "it may have been used by a newer version: install that one",
                ) from None

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """SQLAlchemy's words hold values of rows, so only the driver's own are passed on."""
        try:
            yield
        except IntegrityError:
            raise Conflict("somebody else made or removed the same thing at the same moment", "try again") from None
        except DBAPIError as error:
            reason = str(error.orig).strip().splitlines()[0] if error.orig else type(error).__name__
            if "is full" in reason or "No space left" in reason:
                raise StorageFull(f"the database cannot be written: {reason}") from error
            if "database is locked" in reason:
                raise StorageError("the database is locked by another program", "end that program") from error
            raise StorageError(f"the database failed: {reason}", _BROKEN if "malformed" in reason else None) from error
        except SQLAlchemyError as error:
            raise StorageError(f"the database failed: {type(error).__name__}") from error


def _revision(connection: Connection) -> str | None:
    """What alembic has noted of the tables; None: there are none yet."""
    if not sqlalchemy.inspect(connection).has_table("alembic_version"):
        return None
    return connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()


def _newest_revision() -> str:
    """Migrations are called v<revision>_<what it does>.py."""
    names = (path.name for path in files("service.store").joinpath("migrations/versions").iterdir())
    return max(name for name in names if name.startswith("v"))[1:].partition("_")[0]


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # we say when a transaction begins, not the driver
    connection.text_factory = text_of
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",  # what was committed survives a power cut
        "foreign_keys=ON",
        f"busy_timeout={BUSY_SECONDS * 1000}",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("understudy_writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
