"""Commands about drills: whose turn it is, and the evidence that they leave."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from agent.protocol.errors import StorageError, UsageError
from service.cli.client import Service, api
from service.cli.output import emit
from service.cli.text import duration, length_of_time, shown, table

OFF = "off"


def length_or_off(text: str) -> float | str:
    return OFF if text == OFF else length_of_time(text)


def standing(options: argparse.Namespace) -> None:
    found = Service.of(options).get("/api/v1/drills")
    emit(options, found, _standing_text(found))


def schedule(options: argparse.Namespace) -> None:
    """What is not said stays as it is."""
    service = Service.of(options)
    now = service.get("/api/v1/drills")["schedule"] or {"window": None, "at_once": 1}
    if options.off is not None or options.every == OFF:
        wanted: dict[str, Any] = {"every_seconds": None}
    else:
        every = now.get("every_seconds") if options.every is None else options.every
        if every is None:
            raise UsageError(
                "how often is each server to be drilled?", "say --every 24h, or: understudy drills schedule off"
            )
        window = now["window"] if options.window is None else options.window
        wanted = {
            "every_seconds": every,
            "window": None if window == OFF else window,
            "at_once": now["at_once"] if options.at_once is None else options.at_once,
        }
    found = service.put("/api/v1/drills/schedule", wanted)
    emit(options, found, _standing_text(found))


def evidence(options: argparse.Namespace) -> None:
    if options.run_id == "verify":
        _verify(options)
        return
    if options.file is not None or options.key is not None:
        raise UsageError(
            "a file and --key are for verifying", f"say: understudy evidence verify {options.file or 'FILE'} --key KEY"
        )
    service = Service.of(options)
    path = api("runs", options.run_id, "evidence")
    names = service.get(path)["files"]
    folder = Path(options.out or options.run_id)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            # a name is the service's word: it must not lead elsewhere
            (folder / Path(name).name).write_bytes(service.content(api("runs", options.run_id, "evidence", name)))
    except OSError as error:
        raise StorageError(f"{folder} cannot be written: {error.strerror}", "check the folder and its space") from None
    document = {"run": options.run_id, "folder": str(folder), "files": names}
    lines = [f"the evidence of {options.run_id} is in {folder}: {', '.join(names)}"]
    lines.append(f"check it anywhere: understudy evidence verify {folder / names[0]} --key {folder / names[-1]}")
    emit(options, document, "\n".join(lines))


def _verify(options: argparse.Namespace) -> None:
    if options.file is None or options.key is None:
        raise UsageError(
            "verify which evidence, with whose key?", "say: understudy evidence verify FILE --key sign.pub"
        )
    from service.evidence.verify import verify_evidence  # libraries that no other command needs

    checked = verify_evidence(options.file, options.key)
    emit(options, checked.to_json(), checked.text())


def _standing_text(found: dict[str, Any]) -> str:
    rows = [
        [
            server["server"],
            target["target"] if target["target"] != server["server"] else None,
            shown(server["proven_at"]) if server["proven_at"] else "never",
            "-"
            if server["last"] is None
            else f"{server['last']['run']}: {'held' if server['last']['held'] else 'FAILED'}",
            shown(target["due_at"]) if target["due_at"] else None,
        ]
        for target in found["targets"]
        for server in target["servers"]
    ]
    planned = found["schedule"]
    line = "no drills are scheduled: understudy drills schedule --every 24h --window 01:00-05:00"
    if planned is not None:
        window = f", begun between {planned['window']} UTC" if planned["window"] else ""
        line = f"each is drilled every {duration(planned['every_seconds'])}{window}, {planned['at_once']} at once"
    headings = ["SERVER", "BY PLAN", "PROVEN BOOTABLE", "LAST VERDICT", "DUE"]
    return f"{table(headings, rows, 'nothing is protected yet')}\n{line}"
