"""Which commands there are and what they take; the one place where errors become one line and an exit status."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent.protocol.errors import UnderstudyError
from service.cli import arrows, audit, drills, export, pairing, plans, points, runs, seed, verify
from service.cli.output import harmless
from service.cli.text import at_least_one, host_and_port

OURS = ("agent", "recovery", "service")
_WHOLE_INSTALL = "this is the agent's install; for the service: pip install 'understudy[service]'"

Run = Callable[[argparse.Namespace], None]


def main(arguments: list[str] | None = None) -> int:
    """Runs one command. Returns 0, 1 (it failed: one line on stderr) or 2 (wrong usage)."""
    parser = build_parser()
    # Not as defaults: parsers share their options' actions, and a command's would undo what was said before it.
    options = parser.parse_args(arguments, argparse.Namespace(json=False, tenant=None))
    asks = getattr(options, "confirms", False) and not (
        options.yes or getattr(options, "dry_run", False) or getattr(options, "drill", False)
    )
    if asks and not sys.stdin.isatty():
        parser.error("nobody is here to confirm this: say --yes (or --dry-run to see the steps)")
    misused = getattr(options, "misused", None)
    if misused is not None and (wrong := misused(options)):
        parser.error(wrong)
    try:
        options.run(options)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in OURS:
            raise
        print(f"understudy: the Python package {error.name} is not installed ({_WHOLE_INSTALL})", file=sys.stderr)
        return 1
    except UnderstudyError as error:
        print(harmless(f"understudy: {error}".replace("\n", " ")), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "understudy: interrupted; what the service was asked to do goes on there (see: understudy runs)",
            file=sys.stderr,
        )
        return 130
    except BrokenPipeError:
        return 1
    return 0


def _serve(options: argparse.Namespace) -> None:
    gc.disable()  # nothing is garbage until it serves: a tenth of the time that a killed service's runs wait for
    from service.serve import ServeOptions, serve  # half a second of imports that no other command needs

    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s level=%(levelname)s logger=%(name)s %(message)s", stream=sys.stderr
    )
    logging.getLogger("alembic").setLevel(logging.WARNING)
    os.umask(0o077)  # what is kept are servers' disks, and the folder may have been made for all to read
    host, port = options.listen
    serve(
        ServeOptions(
            data=Path(options.data),
            host=host,
            port=port,
            site=options.site,
            database=options.database,
            interval_seconds=options.interval_seconds,
            keep=options.keep,
            keep_evidence_days=options.keep_evidence_days,
        )
    )


def _examples(*examples: str) -> dict[str, Any]:
    """How a parser comes to have a help that ends with examples."""
    epilog = "examples:\n" + "\n".join(f"  understudy {example}" for example in examples)
    return {"epilog": epilog, "formatter_class": argparse.RawDescriptionHelpFormatter}


class _Commands:
    """Adds commands that all take the options which say where the service is."""

    def __init__(self, parser: argparse.ArgumentParser, shared: argparse.ArgumentParser) -> None:
        self._subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
        self._shared = shared

    def add(self, name: str, run: Run | None, text: str, *examples: str) -> argparse.ArgumentParser:
        made = self._subparsers.add_parser(
            name,
            parents=[self._shared],
            help=text,
            description=text,
            **_examples(*examples),
        )
        if run is not None:
            made.set_defaults(run=run)
        return made


def build_parser() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    shared.add_argument("--data", metavar="DIR", help="the data folder of a service on this machine")
    shared.add_argument("--url", help="the service's URL (else UNDERSTUDY_URL)")
    shared.add_argument("--token", help="an operator's token (else UNDERSTUDY_TOKEN)")
    shared.add_argument("--tenant", metavar="T", help="in whose name (else: default)")
    shared.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    parser = argparse.ArgumentParser(
        prog="understudy",
        description="Cloud disaster recovery: what is protected, how recent it is, and the button.",
        parents=[shared],
        **_examples("serve --data /var/lib/understudy", "servers", "panic web01 --drill", "panic --help"),
    )
    commands = _Commands(parser, shared)

    serve = commands.add(
        "serve", _serve, "run the service: control plane and receiver", "serve --data /var/lib/understudy"
    )
    serve.add_argument("--listen", metavar="HOST:PORT", type=host_and_port, default=("127.0.0.1", 8470))
    serve.add_argument("--site", choices=("local", "aws"), default="local", help="where replicas live and boot")
    serve.add_argument("--database", metavar="URL", help="default: SQLite in the data folder")
    serve.add_argument("--interval-seconds", metavar="N", type=at_least_one, default=300, help="between pushes")
    serve.add_argument("--keep", metavar="N", type=at_least_one, default=48, help="points kept of each server")
    serve.add_argument(
        "--keep-evidence-days", metavar="N", type=at_least_one, default=400, help="after a drill has ended"
    )
    serve.set_defaults(needs_data=True)

    token = commands.add(
        "enroll-token",
        points.enroll_token,
        "a one-time token that makes a machine an agent",
        "enroll-token",
        "enroll-token --name web01    (also for a repair target or a replacement of web01)",
    )
    token.add_argument("--name", metavar="SERVER", help="the server's name (else: the machine's host name)")
    token.add_argument("--expires-hours", metavar="N", type=float, default=24.0)

    pairing.register(commands.add)
    commands.add("servers", points.list_servers, "what is protected, and how far behind it is", "servers")
    listing = commands.add("points", points.list_points, "a server's recovery points, newest first", "points web01")
    listing.add_argument("server", metavar="SERVER")
    listing = commands.add(
        "runs",
        runs.list_runs,
        "drills, failovers and failbacks, newest first; or one, step by step",
        "runs",
        "runs failover-1a2b3c4d --follow",
        "runs --most 1000 --json",
    )
    listing.set_defaults(misused=runs.misused_listing)
    listing.add_argument("run_id", metavar="RUN", nargs="?", help="this one, with its steps")
    listing.add_argument("--follow", action="store_true", help="until RUN is at rest, like the command that began it")
    listing.add_argument("--most", metavar="N", type=at_least_one, default=100, help="how many (default: 100)")

    take = commands.add(
        "take", points.take, "ask a server's agent for a point now", 'take web01 --label "before the upgrade"'
    )
    take.add_argument("server", metavar="SERVER")
    take.add_argument("--label", metavar="TEXT")

    made = commands.add(
        "export",
        export.export,
        "a point as files that need no Understudy, and what to do with them on another hypervisor",
        "export pt-7f3k9q2m4x --format qcow2 web01.qcow2",
        "export pt-7f3k9q2m4x --format ovf web01.ovf    (VMware: the whole server)",
        "export pt-7f3k9q2m4x --format vhdx web01.vhdx    (Hyper-V; Azure: --format vhd)",
    )
    made.add_argument("point", metavar="POINT")
    made.add_argument("--volume", metavar="N", type=int, help="which, in boot order from 0 (default: 0)")
    made.add_argument("--format", choices=export.FORMATS, required=True)
    made.add_argument("out", metavar="OUT")

    _add_verify(commands)

    _add_plan(commands)
    _add_seed(commands)
    runs.register(commands.add)
    audit.register(commands.add)
    arrows.register(commands.add)
    _add_drills(commands)
    return parser


def _add_drills(commands: _Commands) -> None:
    listing = commands.add(
        "drills",
        drills.standing,
        "when each server was last proven bootable, and whose turn it is",
        "drills",
        "drills schedule --every 24h --window 01:00-05:00",
        "drills schedule off",
    )
    actions = listing.add_subparsers(metavar="ACTION")
    schedule = actions.add_parser(
        "schedule",
        parents=[commands._shared],
        help="drill every server in turn, longest unproven first",
        **_examples("drills schedule --every 24h --window 01:00-05:00", "drills schedule off"),
    )
    schedule.add_argument("off", nargs="?", choices=("off",), help="no more drills but by hand")
    schedule.add_argument(
        "--every", metavar="TIME", type=drills.length_or_off, help="each server once in so long: 24h, 7d; or off"
    )
    schedule.add_argument("--window", metavar="HH:MM-HH:MM|off", help="when drills may begin, in UTC; off: at any time")
    schedule.add_argument("--at-once", metavar="N", type=at_least_one, help="how many side by side (default: 1)")
    schedule.set_defaults(run=drills.schedule)

    evidence = commands.add(
        "evidence",
        drills.evidence,
        "what a drill has proven, signed; and whether somebody's copy is what was signed",
        "evidence drill-1a2b3c4d --out proof",
        "evidence verify proof/drill-1a2b3c4d.json --key sign.pub    (needs no service)",
    )
    evidence.add_argument("run_id", metavar="RUN|verify")
    evidence.add_argument("file", metavar="FILE", nargs="?", help="with verify: the evidence's JSON file")
    evidence.add_argument("--out", metavar="DIR", help="where to put it (default: a folder named like the run)")
    evidence.add_argument("--key", metavar="PUBLIC.pem", help="with verify: pki/sign.pub of the service that signed it")


def _add_verify(commands: _Commands) -> None:
    command = commands.add(
        "verify",
        verify.verify,
        "read points back, check every block and the signed root",
        "verify --all",
        "verify --heal pt-7f3k9q2m4x",
        "verify --offline pt-7f3k9q2m4x.json --key sign.pub --volume 0=web01.qcow2",
    )
    command.set_defaults(misused=verify.misused)
    command.add_argument("point", metavar="POINT", nargs="?")
    command.add_argument("--all", action="store_true", help="every point, also those that cannot be used any more")
    command.add_argument("--heal", action="store_true", help="put back what another copy or a signature can prove")
    command.add_argument("--offline", metavar="MANIFEST", help="without a service: only this file and the public key")
    command.add_argument("--key", metavar="PUBLIC.pem", help="with --offline: pki/sign.pub of the service")
    command.add_argument(
        "--volume",
        metavar="N=IMAGE",
        action="append",
        default=[],
        help="with --offline: a volume of the point as a raw or qcow2 file, compared with the signed root",
    )


def _add_plan(commands: _Commands) -> None:
    plan = commands.add(
        "plan", None, "recovery plans", "plan apply shop.yaml", "plan check shop", "plan show web01", "plan list"
    )
    actions = plan.add_subparsers(required=True, metavar="ACTION")
    shared = commands._shared

    def add(name: str, run: Run, text: str, example: str) -> argparse.ArgumentParser:
        made = actions.add_parser(name, parents=[shared], help=text, description=text, **_examples(f"plan {example}"))
        made.set_defaults(run=run)
        return made

    apply = add("apply", plans.apply, "put a plan in place, or replace it", "apply shop.yaml")
    apply.add_argument("file", metavar="FILE")
    apply.add_argument("--draft", action="store_true", help="also with servers that are not protected yet")
    show = add("show", plans.show, "a plan as YAML; a server without one has a default", "show web01 > web01.yaml")
    show.add_argument("name", metavar="NAME")
    check = add("check", plans.check, "would it work now? red (exit 1), amber or green, with reasons", "check shop")
    check.add_argument("name", metavar="NAME")
    add("list", plans.list_plans, "all plans, and how they stood when they were last checked", "list")
    remove = add("remove", plans.remove, "remove a plan; its servers have their default plans then", "remove shop")
    remove.add_argument("name", metavar="NAME")

    caps = commands.add(
        "caps",
        plans.caps,
        "what a tenant's runs may not exceed together; without options: as they are",
        "caps",
        "caps --instances 20 --price-per-hour 12.5",
        "caps --price-per-hour none",
    )
    caps.add_argument("--instances", metavar="N|none")
    caps.add_argument("--price-per-hour", metavar="AMOUNT|none")


def _add_seed(commands: _Commands) -> None:
    shared = commands._shared
    actions = commands.add(
        "seed", None, "a server's initial content, brought on a disk instead of sent", "seed import web01.seed"
    ).add_subparsers(required=True, metavar="ACTION")
    take_in = actions.add_parser(
        "import",
        parents=[shared],
        help="take in the file that `understudy-agent seed --onto FILE` wrote",
        **_examples("seed import web01.seed"),
    )
    take_in.add_argument("file", metavar="FILE")
    take_in.set_defaults(run=seed.seed_import)
