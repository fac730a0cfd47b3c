"""`understudy drills` and `understudy evidence` as a user calls them; what they prove: tests/faults/test_drills.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.protocol.errors import UsageError
from service.cli.text import seconds_of
from tests.faults.harness import Service, run, served


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with served(tmp_path_factory.mktemp("service")) as made:
        yield made


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("24h", 86_400), ("1.5d", 129_600)])
def test_lengths_of_time_are_said_as_people_say_them(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "24", "h", "-1h", "1 h", "1w", "1h30m"])
def test_what_is_no_length_of_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="length of time"):
        seconds_of(text)


def test_a_schedule_keeps_what_is_not_said_anew(service: Service) -> None:
    assert "say --every 24h" in service.ask("drills", "schedule", "--window", "01:00-05:00").complaint
    service.ask("drills", "schedule", "--every", "24h", "--window", "01:00-05:00", "--json").document  # noqa: B018
    found = service.ask("drills", "schedule", "--at-once", "3", "--json").document
    assert found["schedule"] == {"every_seconds": 86_400.0, "window": "01:00-05:00", "at_once": 3}
    found = service.ask("drills", "schedule", "--window", "off", "--json").document
    assert found["schedule"] == {"every_seconds": 86_400.0, "window": None, "at_once": 3}
    assert "each is drilled every 24.0 h, 3 at once" in service.ask("drills").out
    assert service.ask("drills", "schedule", "off", "--json").document["schedule"] is None


def test_a_schedule_or_a_time_to_live_that_cannot_be_is_refused(service: Service) -> None:
    assert "too many" in service.ask("drills", "schedule", "--every", "1s").complaint
    assert service.ask("drills", "schedule", "--every", "often").code == 2
    assert "no window" in service.ask("drills", "schedule", "--every", "24h", "--window", "noon").complaint
    refused = service.ask("panic", "web01", "--drill", "--ttl", "soon")
    assert (refused.code, "is no length of time" in refused.err) == (2, True)


def test_evidence_that_is_not_there_and_questions_that_are_none_are_answered_in_a_line(
    service: Service, tmp_path: Path
) -> None:
    assert "there is no run drill-9" in service.ask("evidence", "drill-9").complaint
    assert "are for verifying" in service.ask("evidence", "drill-9", "--key", "sign.pub").complaint
    assert "whose key" in run("understudy", "evidence", "verify", tmp_path / "x.json").complaint
    key = service.data / "pki" / "sign.pub"
    assert "cannot be read" in run("understudy", "evidence", "verify", tmp_path / "x.json", "--key", key).complaint
    (tmp_path / "x.json").write_text("{}")
    assert "cannot be read" in run("understudy", "evidence", "verify", tmp_path / "x.json", "--key", key).complaint
