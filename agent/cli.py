"""`understudy-agent`: the command line on protected servers and repair targets."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import logging
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent import __version__
from agent.protocol.buffers import keep_large_buffers
from agent.protocol.errors import UnderstudyError, UsageError
from agent.state import State, default_state_folder


def main(arguments: list[str] | None = None) -> int:
    """Runs one command. Returns 0, 1 (it failed: one line on stderr) or 2 (wrong usage)."""
    parser = _parser()
    options = parser.parse_args(arguments, argparse.Namespace(json=False))
    if getattr(options, "yes", True) is False and not sys.stdin.isatty():
        parser.error(f"nobody is here to confirm that {options.onto} is overwritten: say --yes")
    keep_large_buffers()
    logging.basicConfig(level=logging.WARNING, format="understudy-agent: %(message)s", stream=sys.stderr)
    try:
        options.run(options)
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

    found = collect(_state(options).protected())
    _print(options, found, inventory_text(found))


def _protect(options: argparse.Namespace) -> None:
    from agent.volumes.source import SourceVolume

    if len(set(options.paths)) != len(options.paths):
        raise UsageError("a disk is named twice", "name each once, in boot order")
    sizes = {}
    for path in options.paths:
        with SourceVolume.open(path) as source:
            sizes[path] = source.size_bytes
    _state(options).protect(options.paths)
    lines = [f"{path}  {size / (1 << 30):.2f} GiB" for path, size in sizes.items()]
    _print(
        options,
        {"volumes": [{"path": path, "size_bytes": size} for path, size in sizes.items()]},
        "protected, in boot order:\n  " + "\n  ".join(lines) + "\nnext: understudy-agent push",
    )


def _push(options: argparse.Namespace) -> None:
    from agent.client import ServiceClient
    from agent.progress import ProgressBar
    from agent.push.push import PushResult, push

    _take_priority(options)

    async def run(bar: ProgressBar) -> PushResult:
        state = _state(options)
        async with ServiceClient.of(state) as client:
            return await push(state, client, label=options.label, on_progress=bar)

    with ProgressBar("push", enabled=not options.json) as bar:
        result = asyncio.run(run(bar))
    _print(
        options,
        dataclasses.asdict(result),
        f"recovery point {result.point} in {result.seconds:.1f} s: {_mib(result.changed_bytes)} changed, "
        f"{_mib(result.sent_bytes)} sent, frozen {result.frozen_seconds:.2f} s, {result.completeness}",
    )


def _pull(options: argparse.Namespace) -> None:
    from agent.client import ServiceClient
    from agent.progress import ProgressBar
    from agent.pull.pull import PullResult, find_point, pull

    async def run() -> PullResult:
        async with ServiceClient.of(_state(options)) as client:
            point = await find_point(client, options.point)
            _confirm(options, f"everything on {options.onto} is replaced by {point.server} as of {point.taken_at}")
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
    from agent.volumes.topology import mounted_filesystems

    paths = _state(options).protected()
    thawed = thaw_all(sorted({fs.mountpoint for path in paths for fs in mounted_filesystems(path)}))
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


def _confirm(options: argparse.Namespace, what: str) -> None:
    if options.yes:
        return
    sys.stderr.write(f"{what}.\nType yes to go on: ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() != "yes":
        raise UsageError("not confirmed, nothing was written", "type yes, or say --yes")


def _print(options: argparse.Namespace, document: Any, text: str) -> None:
    print(json.dumps(document) if options.json else text, flush=True)


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):.1f} MiB"


def _parser() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--state", metavar="DIR", default=argparse.SUPPRESS, help="the agent's state folder")
    shared.add_argument(
        "--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON document and nothing else"
    )
    parser = argparse.ArgumentParser(
        prog="understudy-agent",
        description="Replicates this server's disks to an Understudy service, and brings them home again.",
        epilog="example:\n  understudy-agent protect /dev/sda && understudy-agent push\n  understudy-agent pull --help",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[shared],
    )
    parser.add_argument("--version", action="version", version=f"understudy-agent {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        name: str, run: Callable[[argparse.Namespace], None], text: str, example: str
    ) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name,
            parents=[shared],
            help=text,
            description=text,
            epilog=f"example:\n  understudy-agent {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        made.set_defaults(run=run)
        return made

    enroll = command(
        "enroll",
        _enroll,
        "get an identity from a service, with a one-time token",
        "enroll https://dr.example.com:8470 ust1_...",
    )
    enroll.add_argument("url", metavar="URL")
    enroll.add_argument("token", metavar="TOKEN", help="from: understudy enroll-token")
    enroll.add_argument("--ca-fingerprint", metavar="HEX", help="SHA-256 of the service's CA, instead of the token's")

    command("inventory", _inventory, "what this machine is, and what would stop it from booting elsewhere", "inventory")

    protect = command(
        "protect", _protect, "which disks or image files to replicate, in boot order", "protect /dev/sda /dev/sdb"
    )
    protect.add_argument("paths", metavar="PATH", nargs="+")

    push = command("push", _push, "make one recovery point now", 'push --label "before the upgrade"')
    push.add_argument("--label", metavar="TEXT")

    command("run", _run, "run as a daemon: push on schedule and on the service's word", "run")

    pull = command(
        "pull",
        _pull,
        "make a disk or image file equal to a recovery point, fetching only what differs",
        "pull latest --volume 0 --onto /dev/sda --yes",
    )
    pull.add_argument("point", metavar="POINT", help="a point's id, or: latest")
    pull.add_argument("--volume", metavar="N", type=int, default=0, help="which of the point's volumes (default 0)")
    pull.add_argument("--onto", metavar="PATH", required=True, help="the disk or file to overwrite")
    pull.add_argument("--yes", action="store_true", help="do not ask")

    seed = command(
        "seed",
        _seed,
        "write all protected disks to a file, to be carried to the service instead of sent",
        "seed --onto /media/usb/web01.seed",
    )
    seed.add_argument("--onto", metavar="FILE", required=True, help="the file to write; it must not exist yet")

    limit = command(
        "limit",
        _limit,
        "the bandwidth that pushes may take; one that is running keeps to it within a second",
        "limit 20mbit --between 08:00-18:00\n  understudy-agent limit none",
    )
    limit.add_argument("rate", metavar="RATE", nargs="?", help="like 20mbit or 2MB/s; none; without it: show")
    limit.add_argument("--between", metavar="HH:MM-HH:MM", help="only in these hours, by this machine's clock")

    priority = command(
        "priority",
        _priority,
        "whether replication stands back behind the server's own work; a daemon takes it over when it starts",
        "priority low",
    )
    priority.add_argument("priority", choices=("low", "normal"), nargs="?", help="without it: show")

    allow = command(
        "allow",
        _allow,
        "commands that a recovery plan may have run here, by name; there are none at first",
        "allow db-ready -- /usr/bin/pg_isready -q\n  understudy-agent allow db-ready --remove",
    )
    allow.add_argument("name", metavar="NAME", nargs="?", help="without it: show")
    allow.add_argument("--remove", action="store_true", help="allow it no longer")
    allow.add_argument("words", metavar="COMMAND", nargs="*", help="after --: a program and its arguments")

    command("thaw", _thaw, "thaw the protected disks' filesystems, whoever froze them (systemd runs this)", "thaw")
    return parser


if __name__ == "__main__":
    sys.exit(main())
