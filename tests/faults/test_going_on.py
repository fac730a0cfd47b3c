"""A service that was killed in a run goes on with it before it has looked through all that the site holds."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from tests.faults.harness import Agent, Ledger, Service
from tests.patience import eventually

PLAN = """
plan: shop
pre: [{run: [hold], in_drills: true, timeout_seconds: 1000}]
groups: [{servers: [{name: web01, memory_mib: 128, cpus: 1, repair: false}]}]
"""


def test_a_run_goes_on_while_the_points_are_still_being_read(
    protected: Agent, image: Path, ledger: Ledger, service: Service, tmp_path: Path
) -> None:
    begun = tmp_path / "begun"
    script = service.data / "scripts/hold"
    script.parent.mkdir()
    script.write_text(f"#!/bin/sh\necho begun >> {begun}\nexec sleep 300\n")
    script.chmod(0o755)
    plan = tmp_path / "plan.yaml"
    plan.write_text(PLAN)
    assert service.ask("plan", "apply", plan).code == 0
    pressing = threading.Thread(target=service.ask, args=("panic", "shop", "--drill", "--yes"))
    pressing.start()
    eventually(begun.exists)
    service.kill()
    pressing.join()
    manifest = service.data / "site" / protected.server_id / "documents" / "pt-slow.json"
    os.mkfifo(manifest)  # whoever reads it waits
    starting = threading.Thread(target=service.start)
    starting.start()
    try:
        eventually(lambda: begun.read_text().split() == ["begun", "begun"])
        assert starting.is_alive(), "it is not ready: the points are being read"
    finally:
        manifest.write_text("no manifest")
        starting.join()
        manifest.unlink()
    (run,) = service.ask("runs", "--json").document
    assert run["state"] == "running"
    assert service.ask("end", run["id"], "--yes").code == 0
    ledger.reported(protected.push(), image)
    ledger.check(service)
