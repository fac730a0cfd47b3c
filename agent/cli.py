"""`understudy-agent`: the command line on protected servers and repair targets."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import logging
import shlex
import sys
from pathlib import Path
from typing import Any

from agent.arguments import make_parser
from agent.protocol.buffers import keep_large_buffers
from agent.protocol.errors import UnderstudyError, UsageError
from agent.state import State, default_state_folder


def main(arguments: list[str] | None = None) -> int:
    """Runs one command. Returns 0, 1 (it failed: one line on stderr) or 2 (wrong usage)."""
    parser = make_parser()
    options = parser.parse_args(arguments, argparse.Namespace(json=False))
    if getattr(options, "yes", True) is False and not sys.stdin.isatty():
        parser.error(f"nobody is here to confirm that {options.onto} is overwritten: say --yes")
    keep_large_buffers()
    logging.basicConfig(level=logging.WARNING, format="understudy-agent: %(message)s", stream=sys.stderr)
    try:
        _COMMANDS[options.command](options)
    except UnderstudyError as error:
        print(f"understudy-agent: {error}".replace("\n", " "), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("understudy-agent: interrupted; nothing was lost, and the next push goes on from here", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1
    return 0


# --- commands ---


def _enroll(options: argparse.Namespace) -> None:
    from agent.identity import enroll

    identity = asyncio.run(enroll(_state(options), options.url, options.token, options.ca_fingerprint))
    _print(
        options,
        {"server": identity.server_name, "server_id": identity.server_id, "url": identity.url},
        f"enrolled as {identity.server_name} with {identity.url}\nnext: understudy-agent protect PATH...",
    )


def _inventory(options: argparse.Namespace) -> None:
    from agent.inventory import collect
    from agent.report import inventory_text
    from agent.sources import Place, places

    protected: list[Place] = []
    with contextlib.suppress(UnderstudyError):  # a machine is shown also to those who may not read the agent's state
        protected = places(_state(options))
    found = collect([place.path for place in protected])
    found["protected"] = [dataclasses.asdict(place) for place in protected]
    _print(options, found, inventory_text(found))


def _protect(options: argparse.Namespace) -> None:
    from agent.sources import protect

    if len(set(options.paths)) != len(options.paths):
        raise UsageError("a disk is named twice", "name each once, in boot order")
    sizes = protect(_state(options), options.paths)
    lines = [f"{path}  {size / (1 << 30):.2f} GiB" for path, size in sizes.items()]
    _print(
        options,
        {"volumes": [{"path": path, "size_bytes": size} for path, size in sizes.items()]},
        "protected, in boot order:\n  " + "\n  ".join(lines) + "\nnext: understudy-agent push",
    )


def _relocate(options: argparse.Namespace) -> None:
    from agent.sources import relocate

    seen = relocate(_state(options), options.path, options.disk)
    _print(
        options,
        dataclasses.asdict(seen),
        f"the volume protected as {seen.path} is {seen.device} from now on, {seen.size_bytes / (1 << 30):.2f} GiB"
        f" ({', '.join(seen.marks) or 'nothing on it tells it from others'})\nnext: understudy-agent push",
    )


def _push(options: argparse.Namespace) -> None:
    from agent.client import ServiceClient
    from agent.progress import ProgressBar

    _take_priority(options)

    async def run(bar: ProgressBar) -> Any:
        state = _state(options)
        async with ServiceClient.of(state) as client:
            from agent.push.push import push  # takes about as long as a line

            return await push(state, client, label=options.label, on_progress=bar)

    with ProgressBar("push", enabled=not options.json) as bar:
        result = asyncio.run(run(bar))
    _print(
        options,
        dataclasses.asdict(result),
        f"recovery point {result.point} in {result.seconds:.1f} s: {_mib(result.changed_bytes)} changed, "
        f"{_mib(result.sent_bytes)} sent, frozen {result.frozen_seconds:.2f} s, {result.completeness}"
        + "".join(f"\nthe volume protected as {path} is {disk} here" for path, disk in result.found_at.items()),
    )


def _pull(options: argparse.Namespace) -> None:
    from agent.client import ServiceClient
    from agent.progress import ProgressBar
    from agent.pull.lost import lost_on
    from agent.pull.pull import PullResult, find_point, pull

    async def run() -> PullResult:
        async with ServiceClient.of(_state(options)) as client:
            point = await find_point(client, options.point)
            becomes = f"{options.onto} becomes volume {options.volume} of {point.server} as of {point.taken_at}"
            _confirm(options, point.server, f"{lost_on(options.onto)}: {becomes}")
            with ProgressBar("pull", enabled=not options.json) as bar:
                return await pull(client, point, options.volume, options.onto, on_progress=bar)

    result = asyncio.run(run())
    _print(
        options,
        dataclasses.asdict(result),
        f"{result.onto} equals {result.point}, volume {result.volume}: {_mib(result.written_bytes)} written, "
        f"{_mib(result.received_bytes)} over the wire, verified, {result.seconds:.1f} s",
    )


def _run(options: argparse.Namespace) -> None:
    from agent.daemon import run

    logging.getLogger().setLevel(logging.INFO)
    _take_priority(options, "low")
    asyncio.run(run(_state(options)))


def _seed(options: argparse.Namespace) -> None:
    from agent.progress import ProgressBar
    from agent.seed import write_seed

    _take_priority(options)
    with ProgressBar("seed", enabled=not options.json) as bar:
        result = write_seed(_state(options), Path(options.onto), on_progress=bar)
    _print(
        options,
        dataclasses.asdict(result),
        f"{result.file}: {_mib(result.data_bytes)} of disk in {_mib(result.file_bytes)}, {result.seconds:.1f} s\n"
        f"next: carry it to the service, and there: understudy seed import {Path(result.file).name}; "
        "then understudy-agent push sends what changed since",
    )


def _limit(options: argparse.Namespace) -> None:
    from agent.pacing import settings
    from agent.pacing.rate import Limit, parse_hours, parse_rate

    folder = _state(options).folder
    now = settings.load(folder)
    if options.between and options.rate in (None, "none"):
        raise UsageError("hours without a rate", "say both: understudy-agent limit 20mbit --between 08:00-18:00")
    if options.rate is not None:
        between = parse_hours(options.between) if options.between else None
        limit = None if options.rate == "none" else Limit(parse_rate(options.rate), between)
        now = dataclasses.replace(now, limit=limit)
        settings.save(folder, now)
    document = {
        "bytes_a_second": now.limit.bytes_a_second if now.limit else None,
        "between": str(now.limit.between) if now.limit and now.limit.between else None,
    }
    _print(options, document, f"bandwidth limit of pushes: {now.limit or 'none'}")


def _priority(options: argparse.Namespace) -> None:
    from agent.pacing import settings
    from agent.pacing.priority import Priority

    folder = _state(options).folder
    now = settings.load(folder)
    if options.priority:
        now = dataclasses.replace(now, priority=Priority(options.priority))
        settings.save(folder, now)
    text = (
        f"priority: {now.priority}"
        if now.priority
        else "priority: low for the daemon, as it was started for a push by hand"
    )
    _print(options, {"priority": now.priority}, text)


def _take_priority(options: argparse.Namespace, default: str | None = None) -> None:
    """The one that was set, else `default`; None: whoever started this has chosen (nice), and stays right."""
    from agent.pacing import settings
    from agent.pacing.priority import Priority, apply

    chosen = settings.load(_state(options).folder).priority or (default and Priority(default))
    problem = apply(chosen) if chosen else ""
    if problem:
        logging.getLogger("understudy-agent").warning("%s", problem)


def _thaw(options: argparse.Namespace) -> None:
    from agent.consistency.freeze import thaw_all
    from agent.sources import places
    from agent.volumes.topology import mounted_filesystems

    disks = [place.device for place in places(_state(options)) if place.device is not None]
    thawed = thaw_all(sorted({fs.mountpoint for disk in disks for fs in mounted_filesystems(disk)}))
    _print(options, {"thawed": thawed}, f"thawed: {', '.join(thawed) or 'nothing was frozen'}")


def _allow(options: argparse.Namespace) -> None:
    from agent.allowed import allow, allowed

    state = _state(options)
    if options.name is not None:
        if options.remove == bool(options.words):
            raise UsageError("allow what?", f"understudy-agent allow {options.name} -- COMMAND, or --remove")
        allow(state, options.name, options.words)
    commands = allowed(state)
    lines = [f"{name}: {shlex.join(command)}" for name, command in sorted(commands.items())]
    _print(options, commands, "\n".join(lines) or "the service may have no command run here")


# --- shared ---


def _state(options: argparse.Namespace) -> State:
    return State(Path(getattr(options, "state", None) or default_state_folder()))


def _confirm(options: argparse.Namespace, name: str, what: str) -> None:
    if options.yes:
        return
    sys.stderr.write(f"{what}.\nType {name} to go on: ")
    sys.stderr.flush()
    if sys.stdin.readline().strip() != name:
        raise UsageError("not confirmed, nothing was written", f"type {name}, or say --yes")


def _print(options: argparse.Namespace, document: Any, text: str) -> None:
    print(json.dumps(document) if options.json else text, flush=True)


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):.1f} MiB"


_COMMANDS = {
    "enroll": _enroll,
    "inventory": _inventory,
    "protect": _protect,
    "relocate": _relocate,
    "push": _push,
    "pull": _pull,
    "run": _run,
    "seed": _seed,
    "limit": _limit,
    "priority": _priority,
    "allow": _allow,
    "thaw": _thaw,
}


if __name__ == "__main__":
    sys.exit(main())
