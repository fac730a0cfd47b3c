from __future__ import annotations

from pathlib import Path

import pytest

from agent.pacing.priority import Priority
from agent.pacing.rate import Limit, parse_hours
from agent.pacing.settings import FILE, Settings, load, save
from agent.protocol.errors import UsageError


@pytest.mark.parametrize(
    "settings",
    [
        Settings(),
        Settings(Limit(2_500_000)),
        Settings(Limit(2_500_000, parse_hours("22:00-06:00")), Priority.LOW),
        Settings(None, Priority.NORMAL),
    ],
)
def test_what_was_set_is_read_back(settings: Settings, tmp_path: Path) -> None:
    save(tmp_path / "state", settings)
    assert load(tmp_path / "state") == settings


def test_where_nothing_was_set_there_is_no_limit(tmp_path: Path) -> None:
    assert load(tmp_path) == Settings()


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"limit": 5, "priority": null}', '{"limit": null, "priority": "highest"}',
     '{"limit": {"bytes_a_second": 1, "between": null}, "priority": null}',
     '{"limit": {"bytes_a_second": 99999, "between": "8"}, "priority": null}'],
)  # fmt: skip
def test_a_damaged_file_is_one_clear_error(text: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(UsageError, match="damaged"):
        load(tmp_path)
