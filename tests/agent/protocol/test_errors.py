import pytest

from agent.protocol.errors import InternalError, StorageFull, UnderstudyError


def test_every_error_survives_the_wire_with_its_class_message_and_hint() -> None:
    for cls in UnderstudyError.registry.values():
        there = UnderstudyError.from_json(cls("it broke", "mend it").to_json())
        assert (type(there), there.message, there.hint) == (cls, "it broke", "mend it")


def test_an_error_reads_as_one_line_with_the_way_out() -> None:
    assert str(StorageFull("the site is full", "free space")) == "the site is full (free space)"


@pytest.mark.parametrize("document", [None, [], {}, {"error": "text"}, {"error": {"code": "from the future"}}])
def test_an_error_that_is_not_understood_is_an_internal_error(document: object) -> None:
    assert isinstance(UnderstudyError.from_json(document), InternalError)


def test_two_errors_cannot_have_one_code() -> None:
    with pytest.raises(TypeError):
        type("Copy", (UnderstudyError,), {"code": "storage_full"})
