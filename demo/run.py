"""The demonstration's six steps."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
import uuid
from datetime import datetime
from pathlib import Path
from typing import Any

from demo import lab
from demo.image import build
from demo.inject import inject
from demo.lab import CommandLine, DemoError, OnPremServer, Program, wait_for
from demo.shop import Order, Watcher, fetch, verdict
from demo.show import Show

FOLDER = lab.REPOSITORY / ".demo"
CACHE = lab.REPOSITORY / ".cache"
SERVER = "web01"
BOOT_SECONDS = 300
FIRST_POINT_SECONDS = 900
FAILBACK_SECONDS = 1800
UNPROTECTED_SECONDS = 6  # between the last recovery point and the disaster, so that there is something to lose
NEW_ORDERS = 10


class Demo:
    """The six steps, in order. What one leaves for the next is an attribute."""

    def __init__(self, show: Show) -> None:
        self._show = show
        self._service_data = FOLDER / "service"
        self._disk = FOLDER / "onprem.raw"
        self._machine_id = str(uuid.uuid4())
        self._understudy = CommandLine("understudy", ["--data", self._service_data], FOLDER / "commands.log")
        self._repair_agent = CommandLine("understudy-agent", ["--state", FOLDER / "repair"], FOLDER / "commands.log")
        self._service: Program | None = None
        self._onprem: OnPremServer | None = None
        self._failback: Program | None = None
        self._watcher: Watcher | None = None
        self._before: list[Order] = []

    def run(self) -> None:
        self._build_image()
        self._protect()
        self._burn_down()
        self._panic()
        self._go_home()
        self._take_down()

    # --- 1 ---

    def _build_image(self) -> None:
        self._show.step(1, "A small, real Debian server, with its shop and the agent inside")
        with self._show.task("the server's disk image") as task:
            self._image = build(CACHE, lambda line: setattr(task, "note", line))
            used = self._image.stat().st_blocks * 512
            size = self._image.stat().st_size
            task.result = f"{_mib(size)} disk, {_mib(used)} used, {self._image.relative_to(lab.REPOSITORY)}"

    # --- 2 ---

    def _protect(self) -> None:
        self._show.step(2, "Protect: the agent inside replicates its own boot disk, orders go on")
        port = lab.free_port()
        with self._show.task("understudy serve") as task:
            self._service = service = Program(
                self._understudy.line("serve", "--listen", f"127.0.0.1:{port}"), FOLDER / "service.log"
            )

            def ready() -> str | None:
                if service.exit_status is not None:
                    raise DemoError(f"understudy serve ended (exit {service.exit_status})", service.log)
                found = re.search(r"^ready (\S+)", service.log.read_text(errors="replace"), re.MULTILINE)
                return found[1] if found else None

            task.result = wait_for("the service's `ready`", ready, 60, service.log)
        self._guests_url = f"https://{lab.HOST_AS_SEEN_BY_GUESTS}:{port}"
        self._hosts_url = f"https://127.0.0.1:{port}"

        with self._show.task("an enrolment token goes into a copy of the image") as task:
            subprocess.run(["cp", "--sparse=always", self._image, self._disk], check=True)
            order = {"url": self._guests_url, "token": self._token(), "protect": ["/dev/vda"]}
            inject(self._disk, "/etc/understudy/enroll.json", json.dumps(order).encode())
        self._boot_onprem()
        with self._show.task("it enrols and makes its first recovery point") as task:
            first = wait_for("the first recovery point", self._newest_point, FIRST_POINT_SECONDS, self._onprem_console)
            task.result = self._describe_point(first)
        for number in (2, 3):
            with self._show.task(f"recovery point {number}: only what changed") as task:
                task.result = self._describe_point(self._understudy.json("take", SERVER))
        self._understudy.json("plan", "apply", lab.REPOSITORY / "demo/web01.yaml")

    # --- 3 ---

    def _burn_down(self) -> None:
        self._show.step(3, "The site burns down: SIGKILL, without warning")
        assert self._watcher and self._onprem
        with self._show.task("some more orders, younger than the last recovery point"):
            time.sleep(UNPROTECTED_SECONDS)
        self._before = self._watcher.stop()
        self._onprem.kill()
        self._show.line(f"{len(self._before)} orders had been acknowledged; the server is gone")

    # --- 4 ---

    def _panic(self) -> None:
        self._show.step(4, f"understudy panic {SERVER} --yes")
        point = self._newest_point()
        assert point is not None
        self._understudy.stream(self._show.line, "panic", SERVER, "--yes")
        run = self._newest_run("failover")
        address = run["instances"][0]["addresses"]["8000"]
        recovered = wait_for("the recovered server's orders", lambda: fetch(address), 60)
        self._watcher = watcher = Watcher(address)
        self._show.line(f"RTO {run['rto_seconds']:.1f} s, from the button to the shop's answer")
        had = {order.id for order in recovered}
        lost = [order for order in self._before if order.id not in had]
        numbers = ", ".join(str(order.number) for order in lost)
        self._show.line(f"RPO {len(lost)} orders lost{f' (number {numbers})' if lost else ''}")
        too_old = [order for order in lost if _seconds(order.taken_at) < _seconds(point["taken_at"]) - 2]
        if too_old:
            raise DemoError(f"order {too_old[0].number} is older than the recovery point, and yet lost")
        newest = recovered[-1].number if recovered else 0
        with self._show.task(f"the recovered server takes {NEW_ORDERS} new orders at http://{address}"):
            wait_for(
                "new orders",
                lambda: True if watcher.orders and watcher.orders[-1].number >= newest + NEW_ORDERS else None,
                120,
            )
        self._failover = run["id"]

    # --- 5 ---

    def _go_home(self) -> None:
        self._show.step(5, "Failback: the old, stale disk gets what differs, and the server goes home")
        assert self._watcher
        with self._show.task("the repaired site enrols a repair agent"):
            self._repair_agent.json("enroll", self._hosts_url, self._token())
        self._failback = Program(self._understudy.line("failback", self._failover, "--yes"), FOLDER / "failback.log")
        recovered = self._follow_failback()
        onprem = self._onprem
        assert onprem
        address = f"127.0.0.1:{onprem.http_port}"
        with self._show.task("orders go on at home"):
            last = max(order.number for order in recovered)
            wait_for("new orders at home", lambda: fetch(address, last + 5) or None, BOOT_SECONDS, self._onprem_console)
        home = fetch(address)
        if home is None:
            raise DemoError("the shop at home stopped answering", self._onprem_console)
        with self._show.task("replication goes on, forward again") as task:
            task.result = self._describe_point(self._understudy.json("take", SERVER))
        self._judge(recovered, home)

    def _follow_failback(self) -> list[Order]:
        """Act as the repaired site, as the failback's steps ask. Returns what the recovered server had."""
        assert self._failback and self._watcher
        deadline = time.monotonic() + FAILBACK_SECONDS
        recovered: list[Order] = []
        pulled: set[str] = set()
        shown = 0
        booted = False
        while True:
            run = self._newest_run("failback", required=False)
            for step in run["steps"][shown:] if run else []:
                if step["state"] != "done":
                    break
                self._show.line(f"{step['seconds'] or 0:7.1f} s  {step['name']}")
                shown += 1
            if run and run["state"] == "succeeded":
                return recovered
            if (run and run["state"] != "running") or self._failback.exit_status not in (None, 0):
                errors = [step["error"] for step in run["steps"] if step["error"]] if run else []
                raise DemoError(f"the failback failed{': ' + errors[0] if errors else ''}")
            waits_for = next((s["waits_for"] or "" for s in run["steps"] if s["state"] == "running"), "") if run else ""
            command = re.search(r"understudy-agent pull (\S+)", waits_for)
            if command and command[1] not in pulled:
                if pulled:  # the second: the recovered server has shut down
                    recovered = self._watcher.stop()
                self._pull(command[1], "the last changes" if pulled else "what differs, while it still runs")
                pulled.add(command[1])
            elif waits_for.startswith("start the repaired machine") and not booted:
                self._boot_onprem(watch=False)
                booted = True
            if time.monotonic() > deadline:
                raise DemoError(f"the failback did not end within {FAILBACK_SECONDS} s")
            time.sleep(0.5)

    def _pull(self, point: str, what: str) -> None:
        with self._show.task(f"the old disk pulls {what}") as task:
            pulled = self._repair_agent.json("pull", point, "--volume", "0", "--onto", self._disk, "--yes")
            size = self._disk.stat().st_size
            task.result = (
                f"{_mib(pulled['received_bytes'])} fetched for {_mib(pulled['written_bytes'])} written, "
                f"of a {_mib(size)} disk"
            )

    def _judge(self, recovered: list[Order], home: list[Order]) -> None:
        print("\n               Verdict, order by order")
        checks = verdict(self._before, recovered, home)
        for check in checks:
            self._show.line(
                f"{'ok' if not check.problem else 'FAILED':<6} {check.count:>5}  {check.what} {check.problem}".rstrip()
            )
        self._show.line(f"{'':6} {len(home):>5}  orders at home in all")
        if any(check.problem for check in checks):
            raise DemoError("the orders at home are not what they should be")

    # --- 6 ---

    def _take_down(self) -> None:
        self._show.step(6, "Everything is taken down")
        assert self._onprem and self._service
        with self._show.task("the on-prem server shuts down"):
            self._onprem.shut_down()
        with self._show.task("runs are ended, the service stops"):
            for run in self._understudy.json("runs"):
                self._understudy.json("end", run["id"])
            points = self._understudy.json("points", SERVER)
            status = self._service.end()
            if status != 0:
                raise DemoError(f"the service did not end cleanly (exit {status})", self._service.log)
        left = lab.processes_of(FOLDER)
        if left:
            raise DemoError(f"still running: {'; '.join(left.values())}")
        self._show.line("nothing is left running")
        files = list(self._service_data.rglob(f"{points[0]['id']}.qcow2"))
        if not files:
            raise DemoError(f"the file of recovery point {points[0]['id']} is not in {self._service_data}")
        folder = files[0].parent.relative_to(lab.REPOSITORY)
        self._show.line(f"{len(points)} recovery points lie in {folder}; to open the newest without Understudy:")
        self._show.line(f"  qemu-img convert -O raw {folder}/{files[0].name} web01.raw")
        subprocess.run(["qemu-img", "check", "-q", files[0]], check=True)

    def abandon(self) -> None:
        """Take down what runs after a failure, by whatever means; files are kept for a look."""
        if self._service and self._service.exit_status is None:
            try:
                for run in self._understudy.json("runs", limit_seconds=20):
                    self._understudy.json("end", run["id"], "--force", limit_seconds=30)
            except DemoError:
                pass  # the processes are killed below in any case
        for program in (self._failback, self._onprem, self._service):
            if program and program.exit_status is None:
                program.end(5)
        lab.kill_processes_of(FOLDER)

    # --- shared ---

    @property
    def _onprem_console(self) -> Path:
        assert self._onprem
        return self._onprem.console

    def _boot_onprem(self, watch: bool = True) -> None:
        with self._show.task("the on-prem server boots") as task:
            self._onprem = onprem = OnPremServer(FOLDER, self._disk, self._machine_id)

            def first_order() -> list[Order] | None:
                if onprem.exit_status is not None:
                    raise DemoError(f"QEMU ended (exit {onprem.exit_status})", onprem.log)
                return fetch(f"127.0.0.1:{onprem.http_port}") or None

            wait_for("the shop's first order", first_order, BOOT_SECONDS, onprem.console)
            task.result = f"takes orders at http://127.0.0.1:{onprem.http_port}"
        if watch:
            self._watcher = Watcher(f"127.0.0.1:{onprem.http_port}")

    def _token(self) -> str:
        return str(self._understudy.json("enroll-token", "--name", SERVER)["token"])

    def _newest_point(self) -> dict[str, Any] | None:
        if self._onprem and self._onprem.exit_status not in (None, -signal.SIGKILL):
            raise DemoError(f"QEMU ended (exit {self._onprem.exit_status})", self._onprem.log)
        servers = self._understudy.json("servers")
        if not any(server["name"] == SERVER for server in servers):
            return None  # not enrolled yet
        points = self._understudy.json("points", SERVER)
        return points[0] if points else None

    def _describe_point(self, point: dict[str, Any]) -> str:
        """Raises DemoError if the server's root filesystem, from which its agent runs, was not frozen for it."""
        assert self._service
        log = self._service.log
        told = re.compile(rf"point {point['id']}: its source stood still for ([\d.]+) s")
        found = wait_for("the service's word", lambda: told.search(log.read_text(errors="replace")), 10, log)
        if not float(found[1]):
            raise DemoError(f"point {point['id']} was taken without a freeze of the server's filesystem")
        return (
            f"{point['id']}, {_mib(point['sent_bytes'])} sent, {point['consistency']}-consistent "
            f"(its root filesystem was frozen for {float(found[1]):.2f} s)"
        )

    def _newest_run(self, kind: str, required: bool = True) -> Any:
        found = next((run for run in self._understudy.json("runs") if run["kind"] == kind), None)
        if found is None and required:
            raise DemoError(f"there is no {kind} run")
        return found


def _mib(size_bytes: float) -> str:
    return f"{size_bytes / (1 << 20):.1f} MiB"


def _seconds(iso_time: str) -> float:
    return datetime.fromisoformat(iso_time).timestamp()
