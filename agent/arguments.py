"""What `understudy-agent` understands: its commands, their arguments, and the help of each."""

from __future__ import annotations

import argparse

from agent import __version__


def make_parser() -> argparse.ArgumentParser:
    """What it parses has the command's name in `command`."""
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

    def command(name: str, text: str, example: str) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name,
            parents=[shared],
            help=text,
            description=text,
            epilog=f"example:\n  understudy-agent {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        made.set_defaults(command=name)
        return made

    enroll = command(
        "enroll",
        "get an identity from a service, with a one-time token",
        "enroll https://dr.example.com:8470 ust1_...",
    )
    enroll.add_argument("url", metavar="URL")
    enroll.add_argument("token", metavar="TOKEN", help="from: understudy enroll-token")
    enroll.add_argument("--ca-fingerprint", metavar="HEX", help="SHA-256 of the service's CA, instead of the token's")

    command("inventory", "what this machine is, and what would stop it from booting elsewhere", "inventory")

    protect = command("protect", "which disks or image files to replicate, in boot order", "protect /dev/sda /dev/sdb")
    protect.add_argument("paths", metavar="PATH", nargs="+")

    relocate = command(
        "relocate",
        "say which disk of this machine is a protected volume, where the agent cannot tell",
        "relocate /dev/sda /dev/vda",
    )
    relocate.add_argument("path", metavar="PATH", help="as it was protected: the volume's identity, which stays")
    relocate.add_argument("disk", metavar="DISK", help="what it is here")

    push = command("push", "make one recovery point now", 'push --label "before the upgrade"')
    push.add_argument("--label", metavar="TEXT")

    command("run", "run as a daemon: push on schedule and on the service's word", "run")

    pull = command(
        "pull",
        "make a disk or image file equal to a recovery point, fetching only what differs",
        "pull latest --volume 0 --onto /dev/sda --yes",
    )
    pull.add_argument("point", metavar="POINT", help="a point's id, or: latest")
    pull.add_argument("--volume", metavar="N", type=int, default=0, help="which of the point's volumes (default 0)")
    pull.add_argument("--onto", metavar="PATH", required=True, help="the disk or file to overwrite")
    pull.add_argument("--yes", action="store_true", help="do not ask")

    seed = command(
        "seed",
        "write all protected disks to a file, to be carried to the service instead of sent",
        "seed --onto /media/usb/web01.seed",
    )
    seed.add_argument("--onto", metavar="FILE", required=True, help="the file to write; it must not exist yet")

    limit = command(
        "limit",
        "the bandwidth that pushes may take; one that is running keeps to it within a second",
        "limit 20mbit --between 08:00-18:00\n  understudy-agent limit none",
    )
    limit.add_argument("rate", metavar="RATE", nargs="?", help="like 20mbit or 2MB/s; none; without it: show")
    limit.add_argument("--between", metavar="HH:MM-HH:MM", help="only in these hours, by this machine's clock")

    priority = command(
        "priority",
        "whether replication stands back behind the server's own work; a daemon takes it over when it starts",
        "priority low",
    )
    priority.add_argument("priority", choices=("low", "normal"), nargs="?", help="without it: show")

    allow = command(
        "allow",
        "commands that a recovery plan may have run here, by name; there are none at first",
        "allow db-ready -- /usr/bin/pg_isready -q\n  understudy-agent allow db-ready --remove",
    )
    allow.add_argument("name", metavar="NAME", nargs="?", help="without it: show")
    allow.add_argument("--remove", action="store_true", help="allow it no longer")
    allow.add_argument("words", metavar="COMMAND", nargs="*", help="after --: a program and its arguments")

    command("thaw", "thaw the protected disks' filesystems, whoever froze them (systemd runs this)", "thaw")
    return parser
