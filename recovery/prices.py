"""What a run uses and costs, and the caps that stop what nobody meant to buy. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from agent.protocol.errors import RecoveryError
from recovery.plans import Caps
from recovery.runs import Run, RunState, StepState
from recovery.sites.contract import Price

_HOUR_SECONDS = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPrice:
    """What a run's instances use together while they run. `disk_bytes` are the volumes' full sizes; what is really
    written is less. `per_hour` None: nothing is charged, or (`known` False) nobody can tell what."""

    instances: int
    cpus: int
    memory_mib: int
    disk_bytes: int
    per_hour: float | None
    currency: str
    known: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def add_up(prices: Sequence[Price], disk_bytes: int) -> RunPrice:
    charged = [price.per_hour for price in prices if price.per_hour is not None]
    return RunPrice(
        instances=len(prices),
        cpus=sum(price.cpus for price in prices),
        memory_mib=sum(price.memory_mib for price in prices),
        disk_bytes=disk_bytes,
        per_hour=round(sum(charged), 6) if charged else None,
        currency=prices[0].currency if prices else "USD",
        known=all(price.known for price in prices),
    )


def over_caps(price: RunPrice, caps: Caps, whose: str, already: Sequence[RunPrice] = ()) -> list[str]:
    """How this would exceed the caps, in words. `already` is what counts against the same caps and runs now."""
    found = []
    instances = price.instances + sum(other.instances for other in already)
    running = instances - price.instances
    beside = f" beside the {running} that {'runs' if running == 1 else 'run'}" if already else ""
    if caps.instances is not None and instances > caps.instances:
        wanted = "1 instance" if price.instances == 1 else f"{price.instances} instances"
        verb = "is" if price.instances == 1 else "are"
        found.append(f"{wanted}{beside} {verb} more than {whose} allows ({caps.instances})")
    if caps.price_per_hour is not None:
        if not price.known:
            found.append(f"{whose} allows {caps.price_per_hour:g} an hour, and the price is not known")
        per_hour = sum(each.per_hour or 0.0 for each in (price, *already))
        if per_hour > caps.price_per_hour:
            found.append(
                f"{per_hour:g} {price.currency} an hour are more than {whose} allows ({caps.price_per_hour:g})"
            )
    return found


def running_prices(runs: Iterable[Run]) -> list[RunPrice]:
    """Of the runs that may have instances now."""
    return [RunPrice(**run.price) for run in runs if run.price and run.state is not RunState.ENDED]


def refuse_over_cap(found: Sequence[str]) -> None:
    """Raises RecoveryError when there is something."""
    if found:
        raise RecoveryError(
            "; ".join(found), 'end what is not needed (understudy runs), or say why not: --over-cap "REASON"'
        )


def used(run: Run, now: float) -> dict[str, Any]:
    """What the run has used so far, or until it ended: `instance_hours`, `memory_mib_hours`, and `cost` at the price
    shown before (None where nothing is charged)."""
    price = RunPrice(**run.price) if run.price else None
    until = run.ended_at if run.state is RunState.ENDED and run.ended_at is not None else now
    hours = 0.0
    memory = 0.0
    for launch in run.launches():
        if launch.state is StepState.DONE and launch.ended_at is not None:
            ran = max(0.0, until - launch.ended_at) / _HOUR_SECONDS
            hours += ran
            memory += ran * launch.args["memory_mib"]
    per_instance = None if price is None or price.per_hour is None else price.per_hour / max(price.instances, 1)
    return {
        "instance_hours": round(hours, 4),
        "memory_mib_hours": round(memory, 1),
        "cost": None if per_instance is None else round(hours * per_instance, 4),
    }
