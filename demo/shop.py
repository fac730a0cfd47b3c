"""The shop's customers: they watch orders being taken, and keep the receipts that the verdict is made from."""

from __future__ import annotations

import http.client
import json
import threading
import urllib.error
import urllib.request
from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True)
class Order:
    number: int
    id: str
    taken_at: str
    machine: str


def fetch(address: str, after: int = 0) -> list[Order] | None:
    """The orders numbered above `after` that the shop at HOST:PORT has; None while it does not answer."""
    try:
        with urllib.request.urlopen(f"http://{address}/orders?after={after}", timeout=5) as reply:
            return [Order(**order) for order in json.load(reply)]
    except (OSError, http.client.HTTPException, urllib.error.URLError, ValueError):
        return None


class Watcher:
    """Asks a shop once a second for its new orders, until stopped. What it has seen, the shop has acknowledged."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._orders: list[Order] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    @property
    def orders(self) -> list[Order]:
        return list(self._orders)

    def stop(self) -> list[Order]:
        self._stop.set()
        self._thread.join()
        return self.orders

    def _watch(self) -> None:
        while True:
            self._orders += fetch(self.address, self._orders[-1].number if self._orders else 0) or []
            if self._stop.wait(1):
                return


@dataclass(frozen=True)
class Check:
    what: str
    count: int
    problem: str = ""
    """Empty: it holds."""


def verdict(before: list[Order], recovered: list[Order], home: list[Order]) -> list[Check]:
    """Is at home what should be? `before`: acknowledged before the disaster. `recovered`: all that the recovered
    server was seen to have, up to its shutdown. `home`: all that the server has after coming home."""
    in_point = {order.id for order in recovered}
    survived = [order for order in before if order.id in in_point]
    lost = [order for order in before if order.id not in in_point]
    onprem_machines = {order.machine for order in before}
    taken_there = [order for order in recovered if order.machine not in onprem_machines]

    # What nobody has seen before must be newer than all that the recovered server was seen to have.
    seen = {order.id for order in before} | in_point
    unseen = [order for order in home if order.id not in seen]
    last_seen = max((order.number for order in recovered), default=0)
    since = [order for order in unseen if order.machine in onprem_machines and order.number > last_seen]
    last_moments = [order for order in unseen if order.machine not in onprem_machines and order.number > last_seen]

    times = Counter(order.id for order in home)
    odd = [
        order
        for number, order in enumerate(home, start=1)
        if times[order.id] > 1 or order.number != number or (order in unseen and order not in since + last_moments)
    ]
    at_home = set(home)
    absent_before = [order for order in survived if order not in at_home]
    absent_there = [order for order in taken_there if order not in at_home]
    came_back = [order for order in lost if times[order.id]]
    return [
        Check("from before the disaster, in the recovery point", len(survived), _problem("missing", absent_before)),
        Check("taken by the recovered server", len(taken_there), _problem("missing", absent_there)),
        Check("taken by it just before its shutdown, after our last look", len(last_moments)),
        Check("taken at home since", len(since), "" if since else "it takes none"),
        Check("younger than the recovery point: lost", len(lost), _problem("at home after all", came_back)),
        Check("twice, out of order or from nowhere", len(odd), _problem("unexplained", odd)),
    ]


def _problem(what: str, orders: list[Order]) -> str:
    """`what` and the orders' numbers; empty if there are none."""
    numbers = [str(order.number) for order in orders]
    return f"{what}: {', '.join(numbers[:10])}{', ...' if len(numbers) > 10 else ''}" if numbers else ""
