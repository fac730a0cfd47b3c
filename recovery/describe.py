"""What a step does, as one line for an operator: a dry run is these lines."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from typing import Any

from recovery.gates import gate_from_json
from recovery.runs import Step
from recovery.sites.contract import Devices, NetworkMode


def describe(step: Step) -> str:
    args = step.args
    line = f"{args['server']}: " if "server" in args else ""
    line += _DESCRIPTIONS[step.action](args)
    if step.retries:
        line += f" (on failure: {step.retries} tries more)"
    if step.optional and not step.closing:
        line += " (whatever comes of it, the rest goes on)"
    return line


def _describe_launch(args: Mapping[str, Any]) -> str:
    volumes = "1 volume" if args["volumes"] == 1 else f"{args['volumes']} volumes"
    network = "the real network" if args["network"] == NetworkMode.REAL else "an isolated network"
    if args.get("network_name"):
        network += f" ({args['network_name']})"
    if args.get("address"):
        network += f" at {args['address']}"
    ports = [f"{guest} at {site or 'any port'}" for guest, site in args["ports"].items()]
    reach = f", its port {', '.join(ports)}" if ports else ""
    size = f"{args['cpus']} CPU{'' if args['cpus'] == 1 else 's'} and {args['memory_mib']} MiB"
    size += ", AHCI disks and an e1000e card" if args.get("devices") == Devices.AHCI else ""
    return (
        f"boot point {args['point']} of {args['taken_at']} ({volumes}) as {args['instance_id']}"
        f" with {size} on {network}{reach}"
    )


def _describe_gate(args: Mapping[str, Any]) -> str:
    gate = gate_from_json(args["gate"])
    return f"wait up to {gate.timeout_seconds:g} s for {gate}"


def _describe_script(args: Mapping[str, Any]) -> str:
    return (
        f"run the script {shlex.join(args['argv'])} on the service's machine, for up to {args['timeout_seconds']:g} s"
    )


_DESCRIPTIONS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "fence_source": lambda _: "its agent stops the server's services; without its word nothing goes on",
    "last_point": lambda _: "its agent makes a last point, which is booted in the place of the planned one",
    "retire_source": lambda _: "the old machine is told to stand down for good",
    "hand_to_instance": lambda args: (
        f"raise the epoch: only {args['instance_id']} may push from here on, a source that returns stands down"
    ),
    "repair": lambda args: (
        f"no boot repair: {args['skip']}"
        if args.get("skip")
        else f"make {args['instance_id']}'s own copy of the point boot here, if it would not as it is"
        + (f", and a machine of its own, called {args['host_name']}" if args.get("host_name") else "")
    ),
    "launch": _describe_launch,
    "gate": _describe_gate,
    "wait": lambda args: f"let {args['seconds']:g} s pass after {args['group']}",
    "script": _describe_script,
    "picture": lambda args: f"take a picture of {args['instance_id']}'s screen",
    "filesystems": lambda args: f"check the filesystems of point {args['point']}, on a copy",
    "evidence": lambda _: "write down what was proven, and sign it",
    "take_point": lambda args: (
        f"take a point of {args['instance_id']} while it runs (if its agent does not answer: use the newest there is)"
    ),
    "await_pull": lambda _: "wait until the repaired machine has pulled that point",
    "await_cut_over": lambda _: "go on working until somebody confirms the cut-over: understudy commit",
    "shut_down": lambda args: f"shut {args['instance_id']} down; the service is away until it boots at home",
    "undo_repair": lambda args: f"take back what boot repair changed on {args['instance_id']}",
    "capture": lambda args: f"take the last point from the stopped {args['instance_id']}",
    "hand_home": lambda _: "raise the epoch: the identity belongs to the machine at home",
    "await_home": lambda _: "wait until the repaired machine has booted and its agent made contact",
    "await_forward": lambda _: "wait for the first recovery point from home",
    "settle": lambda _: "protected again, from home",
    "retire": lambda args: f"remove {args['instance_id']}",
}
