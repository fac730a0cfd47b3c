import pytest

from agent.protocol.errors import NotFound
from service.store.commands import CommandStore
from service.store.database import Database
from service.store.rows import CommandProgress
from tests.service.store.rows_for_tests import add_server


@pytest.fixture
def store(database: Database) -> CommandStore:
    add_server(database)
    add_server(database, id="srv-2", name="db01")
    return CommandStore(database)


def test_asking_twice_asks_once(store: CommandStore) -> None:
    store.add("c-1", "default", "srv-1", "push", "first")
    store.add("c-1", "default", "srv-1", "push", "second")
    assert [(row.id, row.label) for row in store.deliver("srv-1")] == [("c-1", "first")]


def test_a_command_is_told_again_until_its_result_came(store: CommandStore) -> None:
    store.add("c-1", "default", "srv-1", "push", None)
    assert store.get("c-1").state is CommandProgress.QUEUED
    assert [row.id for row in store.deliver("srv-1")] == ["c-1"]
    assert store.get("c-1").state is CommandProgress.SENT
    assert [row.id for row in store.deliver("srv-1")] == ["c-1"], "the answer may have been lost on its way"
    store.finish("c-1", "srv-1", point="pt-1")
    assert store.deliver("srv-1") == []
    assert (store.get("c-1").state, store.get("c-1").point) == (CommandProgress.DONE, "pt-1")


def test_the_first_result_counts(store: CommandStore) -> None:
    store.add("c-1", "default", "srv-1", "push", None)
    store.finish("c-1", "srv-1", error="the disk is gone")
    store.finish("c-1", "srv-1", point="pt-1")
    assert (store.get("c-1").error, store.get("c-1").point) == ("the disk is gone", None)


def test_another_servers_command_is_neither_told_nor_finished(store: CommandStore) -> None:
    store.add("c-1", "default", "srv-1", "push", None)
    assert store.deliver("srv-2") == []
    with pytest.raises(NotFound):
        store.finish("c-1", "srv-2", point="pt-1")


def test_cancelling_ends_what_is_not_done(store: CommandStore) -> None:
    store.add("c-1", "default", "srv-1", "push", None)
    store.add("c-2", "default", "srv-1", "push", None)
    store.finish("c-1", "srv-1", point="pt-1")
    store.cancel("srv-1", "failed over")
    assert (store.get("c-1").error, store.get("c-2").error) == (None, "failed over")
