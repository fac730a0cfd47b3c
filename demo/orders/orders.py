#!/usr/bin/python3
"""A little shop: takes an order a second, keeps it in SQLite, and shows what it has over HTTP.

    /                a page for people
    /health          200 "ok COUNT" while the last order was committed less than 10 s ago, else 503
    /orders?after=N  JSON: [{number, id, taken_at, machine}], those numbered above N, in order

An order counts once it is committed, and committed means on the disk: synchronous=FULL. Only the standard library,
so that it runs on any server's own Python. `machine` is the hardware's UUID: it tells which machine took the order.
"""

from __future__ import annotations

import argparse
import json
import signal
import socket
import sqlite3
import threading
import time
import uuid
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

HEALTHY_SECONDS = 10.0
PAGE = """<!doctype html>
<title>Orders</title>
<style>body {{ font: 16px sans-serif; margin: 3em auto; max-width: 44em }} td {{ padding: .2em 1em .2em 0 }}</style>
<h1>{count} orders</h1>
<p>This machine is {machine}.</p>
<table>{rows}</table>
"""


def machine_id() -> str:
    """The hardware's UUID where it can be read, else the host's name."""
    try:
        return Path("/sys/class/dmi/id/product_uuid").read_text().strip().lower()
    except OSError:
        return socket.gethostname()


class Orders:
    """The database. Every call opens its own connection, so that threads need not share one."""

    def __init__(self, path: Path, machine: str) -> None:
        self.machine = machine
        self._path = path
        self._committed_at = float("-inf")
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._connect() as database:
            database.execute("PRAGMA journal_mode=WAL")
            database.execute(
                "CREATE TABLE IF NOT EXISTS orders (number INTEGER PRIMARY KEY AUTOINCREMENT,"
                " id TEXT NOT NULL UNIQUE, taken_at TEXT NOT NULL, machine TEXT NOT NULL)"
            )
        database.close()

    def take(self) -> None:
        """Take one order; when this returns, it survives a power cut."""
        database = self._connect()
        with database:
            database.execute(
                "INSERT INTO orders (id, taken_at, machine) VALUES (?, ?, ?)",
                (str(uuid.uuid4()), datetime.now(UTC).isoformat(timespec="milliseconds"), self.machine),
            )
        database.close()
        self._committed_at = time.monotonic()

    def count(self) -> int:
        database = self._connect()
        (count,) = database.execute("SELECT count(*) FROM orders").fetchone()
        database.close()
        return int(count)

    def after(self, number: int) -> list[dict[str, Any]]:
        database = self._connect()
        database.row_factory = sqlite3.Row
        rows = database.execute("SELECT * FROM orders WHERE number > ? ORDER BY number", (number,))
        orders = [dict(row) for row in rows]
        database.close()
        return orders

    def healthy(self) -> bool:
        return time.monotonic() - self._committed_at < HEALTHY_SECONDS

    def _connect(self) -> sqlite3.Connection:
        database = sqlite3.connect(self._path, timeout=30)
        database.execute("PRAGMA synchronous=FULL")
        return database


class Handler(BaseHTTPRequestHandler):
    orders: Orders

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path == "/health":
            healthy = self.orders.healthy()
            self._answer(
                200 if healthy else 503, "text/plain", f"{'ok' if healthy else 'stalled'} {self.orders.count()}\n"
            )
        elif url.path == "/orders":
            after = parse_qs(url.query).get("after", ["0"])[0]
            if after.isascii() and after.isdigit():
                self._answer(200, "application/json", json.dumps(self.orders.after(int(after))))
            else:
                self._answer(400, "text/plain", f"after={after} is not a number\n")
        elif url.path == "/":
            count = self.orders.count()
            newest = reversed(self.orders.after(count - 10))
            rows = "".join(f"<tr><td>{o['number']}<td>{o['taken_at']}<td>{o['machine']}" for o in newest)
            self._answer(200, "text/html", PAGE.format(count=count, machine=self.orders.machine, rows=rows))
        else:
            self._answer(404, "text/plain", "there is /, /health and /orders?after=N\n")

    def log_message(self, format: str, *args: Any) -> None:
        """Health checks come every second; they are not worth a line each."""

    def _answer(self, status: int, content_type: str, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{content_type}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    parser = argparse.ArgumentParser(description="Take an order a second, and show them over HTTP.")
    parser.add_argument("--database", type=Path, default=Path("/srv/orders/orders.db"))
    parser.add_argument("--listen", default="0.0.0.0:8000", metavar="HOST:PORT")
    parser.add_argument("--interval", type=float, default=1.0, metavar="SECONDS")
    options = parser.parse_args()
    host, _, port = options.listen.rpartition(":")

    Handler.orders = orders = Orders(options.database, machine_id())
    server = ThreadingHTTPServer((host, int(port)), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"ready http://{host}:{server.server_port}", flush=True)

    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    while not stop.wait(options.interval):
        orders.take()
    server.shutdown()


if __name__ == "__main__":
    main()
