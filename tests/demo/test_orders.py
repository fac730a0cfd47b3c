"""The shop, as a process of its own, over real HTTP and on a real SQLite file."""

from __future__ import annotations

import json
import re
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.patience import PATIENCE_SECONDS

ORDERS = Path(__file__).parents[2] / "demo/orders/orders.py"
Shop = Callable[..., tuple[subprocess.Popen[str], str]]


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    """Starts a shop; returns the process and its URL. All are gone at the end."""
    started: list[subprocess.Popen[str]] = []

    def start(interval: float = 0.02) -> tuple[subprocess.Popen[str], str]:
        process = subprocess.Popen(
            [sys.executable, ORDERS, "--database", tmp_path / "orders/orders.db", "--listen", "127.0.0.1:0",
             "--interval", str(interval)],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        assert process.stdout is not None
        ready = re.fullmatch(r"ready (\S+)\n", process.stdout.readline())
        assert ready
        return process, ready[1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE_SECONDS) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def orders(url: str, after: int = 0) -> list[dict[str, Any]]:
    status, body = get(f"{url}/orders?after={after}")
    assert status == 200
    found: list[dict[str, Any]] = json.loads(body)
    return found


def wait_for_orders(url: str, count: int) -> list[dict[str, Any]]:
    while len(found := orders(url)) < count:
        time.sleep(0.02)
    return found


def test_orders_are_numbered_without_gaps_and_say_which_machine_took_them(shop: Shop) -> None:
    _, url = shop()
    found = wait_for_orders(url, 5)
    assert [order["number"] for order in found] == list(range(1, len(found) + 1))
    assert len({order["id"] for order in found}) == len(found)
    assert len({order["machine"] for order in found}) == 1
    assert set(found[0]) == {"number", "id", "taken_at", "machine"}


def test_after_leaves_out_what_one_has_already(shop: Shop) -> None:
    _, url = shop()
    wait_for_orders(url, 5)
    assert orders(url, after=3)[0]["number"] == 4


def test_health_holds_only_once_an_order_was_committed(shop: Shop) -> None:
    _, url = shop(interval=3600)
    assert get(f"{url}/health")[0] == 503
    _, url = shop()
    wait_for_orders(url, 1)
    status, body = get(f"{url}/health")
    assert status == 200
    assert re.fullmatch(r"ok \d+\n", body)


def test_a_page_for_people_shows_the_newest_orders(shop: Shop) -> None:
    _, url = shop()
    wait_for_orders(url, 2)
    status, body = get(f"{url}/")
    assert status == 200
    assert "orders</h1>" in body


@pytest.mark.parametrize("path", ["/orders?after=x", "/orders?after=-1"])
def test_a_bad_number_is_refused_with_words(shop: Shop, path: str) -> None:
    _, url = shop()
    status, body = get(url + path)
    assert status == 400
    assert "is not a number" in body


def test_every_acknowledged_order_survives_a_kill(shop: Shop, tmp_path: Path) -> None:
    acknowledged: list[dict[str, Any]] = []
    for _ in range(5):
        process, url = shop(interval=0.001)
        acknowledged = wait_for_orders(url, len(acknowledged) + 10)
        process.kill()
        process.wait()
        with sqlite3.connect(tmp_path / "orders/orders.db") as database:
            assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            kept = database.execute("SELECT number, id FROM orders ORDER BY number").fetchall()
        database.close()
        assert kept[: len(acknowledged)] == [(order["number"], order["id"]) for order in acknowledged]


def test_sigterm_ends_it_cleanly(shop: Shop) -> None:
    process, url = shop()
    wait_for_orders(url, 1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_SECONDS) == 0
