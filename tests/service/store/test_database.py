import sqlite3
import threading
from importlib.resources import files
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, insert, select
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

from agent.protocol.errors import Conflict, StorageError, StorageFull, UsageError
from service.store.database import Database, _newest_revision, sqlite_url
from service.store.runs import RunRows
from service.store.schema import metadata, tenants


def test_migrations_from_empty_make_exactly_the_tables_that_queries_expect(database: Database) -> None:
    with database.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_every_row_belongs_to_a_tenant() -> None:
    for table in metadata.sorted_tables:
        assert table.name == "tenants" or "tenant" in table.c, f"{table.name} has rows of nobody"


def test_the_tables_can_be_made_in_postgresql_as_well() -> None:
    for table in metadata.sorted_tables:
        assert "CREATE TABLE" in str(CreateTable(table).compile(dialect=postgresql.dialect()))


def test_opening_twice_changes_nothing(tmp_path: Path) -> None:
    url = sqlite_url(tmp_path / "x.sqlite")
    first = Database.open(url)
    with first.write() as connection:
        connection.execute(insert(tenants).values(name="a", created_at=1.0))
    first.close()
    again = Database.open(url)
    with again.read() as connection:
        assert connection.execute(select(tenants.c.name)).scalars().all() == ["a"]
    again.close()


def test_migrations_are_named_for_their_revisions_so_that_a_start_can_tell_that_there_is_none_to_do(
    database: Database,
) -> None:
    with database.read() as connection:
        assert MigrationContext.configure(connection).get_current_revision() == _newest_revision()


def test_a_database_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    Database.open(sqlite_url(path)).close()
    with sqlite3.connect(path) as direct:
        direct.execute("UPDATE alembic_version SET version_num = '9999'")
    direct.close()
    with pytest.raises(StorageError, match="newer version"):
        Database.open(sqlite_url(path))


def test_a_file_that_is_no_database_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(StorageError, match="not a database"):
        Database.open(sqlite_url(path))


@pytest.mark.parametrize("url", ["rubbish", "mongodb://host/x", "postgresql+nonsense://host/x"])
def test_a_url_that_cannot_be_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(UsageError) as refused:
        Database.open(url)
    assert "host" not in refused.value.message


def test_what_raises_is_undone(database: Database) -> None:
    with pytest.raises(ZeroDivisionError), database.write() as connection:
        connection.execute(insert(tenants).values(name="a", created_at=1.0))
        raise ZeroDivisionError
    with database.read() as connection:
        assert connection.execute(select(tenants.c.name)).scalars().all() == ["default"]


def test_a_row_that_is_there_already_is_a_conflict(database: Database) -> None:
    with pytest.raises(Conflict), database.write() as connection:
        connection.execute(insert(tenants).values(name="default", created_at=1.0))


def test_a_full_disk_is_called_that(database: Database) -> None:
    with pytest.raises(StorageFull, match="full"), database.write() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
        for number in range(100):
            connection.execute(insert(tenants).values(name=f"{number}".rjust(4000, "x"), created_at=1.0))


def test_writers_wait_for_one_another_and_none_is_lost(database: Database) -> None:
    def add(name: str) -> None:
        for number in range(20):
            with database.write() as connection:
                connection.execute(select(tenants)).all()  # what was read must still be true when it writes
                connection.execute(insert(tenants).values(name=f"{name}-{number}", created_at=1.0))

    threads = [threading.Thread(target=add, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as connection:
        assert len(connection.execute(select(tenants)).all()) == 1 + 4 * 20


def test_commits_are_on_the_medium_when_they_return(database: Database) -> None:
    with database.read() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1


def test_steps_of_runs_from_before_parallel_steps_come_one_after_the_other(tmp_path: Path) -> None:
    """A run that was under way when the service was brought up to date must not begin all its steps at once."""
    path = tmp_path / "x.sqlite"
    config = Config()
    config.set_main_option("script_location", str(files("service.store") / "migrations"))
    config.set_main_option("path_separator", "os")
    engine = create_engine(sqlite_url(path))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.exec_driver_sql("INSERT INTO tenants VALUES ('default', 0)")
        connection.exec_driver_sql(
            "INSERT INTO runs (id, tenant, kind, plan, state, created_at, version)"
            " VALUES ('drill-1', 'default', 'drill', 'web01', 'running', 1, 0)"
        )
        for position in range(3):
            connection.exec_driver_sql(
                "INSERT INTO steps (run_id, position, tenant, name, action, args, state, result)"
                f" VALUES ('drill-1', {position}, 'default', 'n', 'launch', '{{}}', 'pending', '{{}}')"
            )
    engine.dispose()
    database = Database.open(sqlite_url(path))
    run = RunRows(database).get("drill-1")
    assert [step.after for step in run.steps] == [[], [0], [1]]
    assert (run.price, run.over_cap) == ({}, None)
    database.close()
