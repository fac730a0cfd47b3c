from __future__ import annotations

import datetime
import socket
import threading
import time
from pathlib import Path

import pytest

from agent.pacing.pace import Pace
from agent.pacing.rate import Limit, parse_hours
from agent.pacing.settings import FILE, Settings, save
from tests.patience import PATIENCE_SECONDS

NOON = datetime.time(12)


def test_the_same_bytes_come_out_whatever_the_limit(tmp_path: Path) -> None:
    body = [b"head", bytearray(range(256)) * 100, memoryview(b"tail")]
    whole = b"".join(body)
    assert b"".join(Pace(tmp_path).parts(body)) == whole
    save(tmp_path, Settings(Limit(10_000_000)))
    parts = [bytes(part) for part in Pace(tmp_path).parts(body)]
    assert b"".join(parts) == whole


def test_a_limited_body_is_let_through_in_slices_and_an_unlimited_one_whole(tmp_path: Path) -> None:
    body = [bytes(1 << 20)]
    assert len(list(Pace(tmp_path).parts(body))) == 1
    save(tmp_path, Settings(Limit(100_000_000)))
    assert len(list(Pace(tmp_path).parts(body))) == 4


def test_what_a_socket_gets_keeps_to_the_rate_and_a_change_is_noticed_meanwhile(tmp_path: Path) -> None:
    save(tmp_path, Settings(Limit(100_000)))
    pace = Pace(tmp_path)
    near, far = socket.socketpair()
    drain = threading.Thread(target=lambda: [None for _ in iter(lambda: far.recv(1 << 20), b"")])
    drain.start()
    began = time.monotonic()
    sent_bytes = 0
    raised = False
    for part in pace.parts([bytes(200_000_000)]):
        near.sendall(part)
        sent_bytes += len(part)
        if not raised:
            assert sent_bytes <= 100_000 * (time.monotonic() - began + 0.2) + (256 << 10), "more than the limit"
        if not raised and sent_bytes > 100_000:
            save(tmp_path, Settings(None))
            raised = True
    near.close()
    drain.join()
    far.close()
    assert raised  # the rest at the old rate would be half an hour, which no test is given


def test_a_body_is_not_charged_whole_to_a_limit_that_comes_in_between(tmp_path: Path) -> None:
    """At the lowest limit 4 MiB are two minutes in which no line says anything."""
    looks = 0

    def clock() -> float:
        nonlocal looks
        looks += 1
        if looks == 3:  # after the bucket's and the first look at the settings
            save(tmp_path, Settings(Limit(32_000)))
        return float(looks)

    pace = Pace(tmp_path, clock)
    parts = pace.parts([bytes(4 << 20)])
    assert len(next(parts)) in (4 << 20, 4 << 10)
    assert pace._bucket.wait_seconds(clock()) < 1


def test_those_who_wait_go_on_when_the_push_is_over(tmp_path: Path) -> None:
    save(tmp_path, Settings(Limit(32_000)))
    pace = Pace(tmp_path)
    pace.take(1 << 30)
    waiting = threading.Thread(target=pace.take, args=(1,))
    waiting.start()
    pace.close()
    waiting.join(PATIENCE_SECONDS)
    assert not waiting.is_alive()


def test_outside_its_hours_a_limit_does_not_hold(tmp_path: Path) -> None:
    save(tmp_path, Settings(Limit(32_000, parse_hours("08:00-18:00"))))
    assert Pace(tmp_path, time_of_day=lambda: NOON).rate == 32_000
    assert Pace(tmp_path, time_of_day=lambda: datetime.time(20)).rate is None


def test_a_damaged_file_leaves_the_limit_as_it_was_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.0
    save(tmp_path, Settings(Limit(32_000)))
    pace = Pace(tmp_path, clock=lambda: now)
    assert pace.rate == 32_000
    (tmp_path / FILE).write_text('{"limit": {"bytes_a_second": "lots"')
    now = 1.0
    assert pace.rate == 32_000
    assert "damaged" in caplog.text
