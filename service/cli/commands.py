"""All commands but `serve`: a service that was killed is not to wait for what it needs none of."""

from __future__ import annotations

import argparse

from service.cli import arrows, audit, drills, export, pairing, plans, points, runs, seed, verify
from service.cli.registering import Commands, Run, with_examples
from service.cli.text import at_least_one


def register(commands: Commands) -> None:
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


def _add_drills(commands: Commands) -> None:
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
        parents=[commands.shared],
        help="drill every server in turn, longest unproven first",
        **with_examples("drills schedule --every 24h --window 01:00-05:00", "drills schedule off"),
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


def _add_verify(commands: Commands) -> None:
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


def _add_plan(commands: Commands) -> None:
    plan = commands.add(
        "plan", None, "recovery plans", "plan apply shop.yaml", "plan check shop", "plan show web01", "plan list"
    )
    actions = plan.add_subparsers(required=True, metavar="ACTION")
    shared = commands.shared

    def add(name: str, run: Run, text: str, example: str) -> argparse.ArgumentParser:
        made = actions.add_parser(
            name, parents=[shared], help=text, description=text, **with_examples(f"plan {example}")
        )
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


def _add_seed(commands: Commands) -> None:
    shared = commands.shared
    actions = commands.add(
        "seed", None, "a server's initial content, brought on a disk instead of sent", "seed import web01.seed"
    ).add_subparsers(required=True, metavar="ACTION")
    take_in = actions.add_parser(
        "import",
        parents=[shared],
        help="take in the file that `understudy-agent seed --onto FILE` wrote",
        **with_examples("seed import web01.seed"),
    )
    take_in.add_argument("file", metavar="FILE")
    take_in.set_defaults(run=seed.seed_import)
