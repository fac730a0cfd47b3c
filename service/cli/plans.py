"""Commands about plans: put in place, shown, checked; and what runs may cost."""

from __future__ import annotations

import argparse
import itertools
import math
from pathlib import Path
from typing import Any

from agent.protocol.errors import RecoveryError, UsageError
from service.cli.client import Service, api
from service.cli.output import emit
from service.cli.text import counted, instant, size, table

NO_LIMIT = "none"
MEANINGS = {
    "red": "it would fail, or not come up as promised",
    "amber": "it would work, and somebody should know this before",
}


def apply(options: argparse.Namespace) -> None:
    from recovery.plans import MAX_TEXT_CHARACTERS, parse_plan

    path = Path(options.file)
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(MAX_TEXT_CHARACTERS + 1)  # however much there is
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", "name a YAML file") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is no text in UTF-8", "name a YAML file") from None
    plan = parse_plan(text, str(path))
    wanted = {"text": text, "draft": options.draft}
    done = Service.of(options).put(api("plans", plan.name), wanted)
    lines = [f"plan {plan.name} is in place; would it work now? understudy plan check {plan.name}"]
    lines += [f"  {name} is not protected yet" for name in done["missing"]]
    emit(options, done, "\n".join(lines))


def show(options: argparse.Namespace) -> None:
    plan = Service.of(options).get(api("plans", options.name))
    if options.json:
        emit(options, plan, "")
    else:
        print(plan["text"].rstrip())  # as it was written: it is going to be a file again


def check(options: argparse.Namespace) -> None:
    """Green and amber succeed, red fails."""
    found = Service.of(options).get(api("plans", options.name, "check"))
    said = "GREEN: nothing speaks against it" if found["level"] == "green" else found["level"].upper()
    lines = [f"plan {found['plan']}: {said}", *findings_lines(found["findings"])]
    if found["price"]:
        lines.append(f"a failover would use {price_text(found['price'])}")
    emit(options, found, "\n".join(lines))
    if found["level"] == "red":
        worst = found["findings"][0]
        raise RecoveryError(f"plan {found['plan']} would not work as it should: {worst['text']}", worst["hint"])


def list_plans(options: argparse.Namespace) -> None:
    """As they stood when they were last checked."""
    service = Service.of(options)
    names = service.get("/api/v1/plans")
    checks = {check["plan"]: check for check in service.get("/api/v1/checks")}
    missing: dict[str, Any] = {"level": None, "checked_at": None, "findings": []}
    document = [{"plan": name} | missing | checks.get(name, {}) for name in [*names, *sorted({*checks} - {*names})]]
    rows = [
        [
            entry["plan"],
            "plan" if entry["plan"] in names else "server without a plan",
            entry["level"] or "not checked yet",
            instant(entry["checked_at"]),
            entry["findings"][0]["text"] if entry["findings"] else "",
        ]
        for entry in document
    ]
    emit(options, document, table(["PLAN", "KIND", "STANDS", "CHECKED", "FOREMOST"], rows, "nothing is protected yet"))


def remove(options: argparse.Namespace) -> None:
    Service.of(options).delete(api("plans", options.name))
    emit(options, {"name": options.name}, f"plan {options.name} is removed; its servers have their default plans")


def caps(options: argparse.Namespace) -> None:
    service = Service.of(options)
    now = service.get("/api/v1/caps")
    if options.instances is not None or options.price_per_hour is not None:
        wanted = {
            "instances": _limit(options.instances, now["instances"], int),
            "price_per_hour": _limit(options.price_per_hour, now["price_per_hour"], float),
        }
        now = service.put("/api/v1/caps", wanted)
    shown = {name: "no limit" if value is None else f"{value:g}" for name, value in now.items()}
    emit(options, now, f"instances: {shown['instances']}\nprice an hour: {shown['price_per_hour']}")


def findings_lines(findings: list[dict[str, Any]]) -> list[str]:
    """What speaks against a run; what several have for a way out is told once, behind the last."""
    lines = []
    for finding, following in itertools.zip_longest(findings, findings[1:]):
        lines.append(f"  {finding['level']}: {finding['text']}")
        if finding["hint"] and (following is None or following["hint"] != finding["hint"]):
            lines.append(f"      {finding['hint']}")
    levels = {finding["level"] for finding in findings}
    return [*lines, *(f"  ({level} means: {meaning})" for level, meaning in MEANINGS.items() if level in levels)]


def price_text(price: dict[str, Any]) -> str:
    money = "nothing is charged" if price["per_hour"] is None else f"{price['per_hour']:g} {price['currency']} an hour"
    if not price["known"]:
        money = "what it costs is not known"
    memory, disk = size(price["memory_mib"] << 20), size(price["disk_bytes"])
    machines = f"{counted(price['instances'], 'instance')}, {counted(price['cpus'], 'CPU')}"
    return f"{machines}, {memory} of memory, {disk} of disk; {money}"


def _limit(said: str | None, now: float | None, number: type[int] | type[float]) -> float | None:
    if said is None:
        return now
    if said == NO_LIMIT:
        return None
    try:
        limit = number(said)
    except ValueError:
        limit = math.nan
    if not math.isfinite(limit):
        raise UsageError(f"{said!r} is no number", f"say a number, or: {NO_LIMIT}")
    return limit
