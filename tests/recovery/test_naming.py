"""What copies are called."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.protocol.errors import UsageError
from recovery.naming import DEFAULT_PATTERN, copy_name


@pytest.mark.parametrize(
    ("server", "windows", "expected"),
    [
        ("web01", False, "web01-clone-2"),
        ("web01", True, "web01-clone-2"),
        ("shop_db.example.com", False, "shop-db-example-com-clone-2"),
        ("лавка", True, "server-clone-2"),
        ("database01", True, "abase01-clone-2"),
        ("a" * 90 + "7", False, "a" * 54 + "7-clone-2"),
    ],
)
def test_a_copy_is_called_after_its_server(server: str, windows: bool, expected: str) -> None:
    assert copy_name(DEFAULT_PATTERN, server, 2, windows=windows) == expected


@pytest.mark.parametrize("pattern", ["", "-{copy}", "{copy}", "test {copy}", "a" * 60 + "{server}{copy}" * 4, "x.y"])
def test_what_can_be_no_name_is_refused(pattern: str) -> None:
    with pytest.raises(UsageError, match="cannot be a host name"):
        copy_name(pattern, "web01", 1, windows=False)


def test_a_windows_name_has_fifteen_characters_at_most() -> None:
    assert copy_name("development-{copy}", "web01", 1, windows=False) == "development-1"
    with pytest.raises(UsageError, match=r"cannot be a Windows' name: .* 15 at most"):
        copy_name("development-no-{copy}", "web01", 1, windows=True)


@given(server=st.from_regex(r"[\w.-]{1,100}", fullmatch=True), copy=st.integers(1, 100), windows=st.booleans())
def test_every_server_has_copies_with_a_name_that_fits(server: str, copy: int, windows: bool) -> None:
    name = copy_name(DEFAULT_PATTERN, server, copy, windows=windows)
    assert len(name) <= (15 if windows else 63)
    assert name.endswith(f"-clone-{copy}")
