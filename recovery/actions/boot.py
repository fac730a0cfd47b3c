"""What the steps of a drill and a failover do."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from agent.protocol.errors import GateFailed, RecoveryError
from agent.protocol.serials import volume_serial
from recovery.actions.context import Interrupted, RepairJob, StepContext, giving_way
from recovery.actions.source import found_out
from recovery.gates import GateResult, check_gate, console_end, gate_from_json
from recovery.sites.contract import Devices, Instance, InstanceSpec, InstanceState, NetworkMode, Site, VolumeKey

LAUNCH_SECONDS = 600.0
HEARTBEAT_SECONDS = 90.0
TELL_SECONDS = 15.0
"""How often a gate that waits says what it sees: each time is a transaction, for each server."""
COMMAND_REPEAT_SECONDS = 5.0


def repair(context: StepContext) -> dict[str, Any]:
    """Works on the instance's own volumes before its first start, never on a point."""
    if context.site.watch(context.instance_id).state in (InstanceState.RUNNING, InstanceState.STOPPED):
        return dict(context.step.result)  # it was started since: now its volumes hold what the guest did
    if context.args.get("skip"):
        return {"note": f"passed over: {context.args['skip']}"}
    if context.repairer is None:
        return {"note": "this service has no boot repair"}
    # What a repair that was cut off has left is nothing to start from.
    context.site.end(context.instance_id)
    context.site.make_instance(launch_spec(context.run.id, found_out(context.run, context.args)))
    context.say(f"what would keep {context.server} from booting here is looked for, and repaired")
    job = repair_job(context.site, context.run.id, context.args, context.interrupt)
    with giving_way(context.interrupt):
        return context.repairer(job)


def repair_job(site: Site, run_id: str, args: Mapping[str, Any], interrupt: threading.Event) -> RepairJob:
    """The instance of a launch step, which is not running, as boot repair takes it."""
    instance_id = args["instance_id"]
    return RepairJob(
        run_id=run_id,
        server=args["server"],
        server_id=args["server_id"],
        instance_id=instance_id,
        volumes=tuple(site.instance_volume_location(instance_id, index) for index in range(args["volumes"])),
        uefi=args["uefi"],
        devices=Devices(args["devices"]) if args.get("devices") else None,
        record=args.get("record"),
        host_name=args.get("host_name"),
        sources=tuple(args.get("sources", ())),
        stopped=interrupt.is_set,
    )


def launch(context: StepContext) -> dict[str, Any]:
    args = found_out(context.run, context.args)
    context.site.launch(launch_spec(context.run.id, args))

    def up() -> Instance | None:
        instance = context.site.watch(context.instance_id)
        return None if instance.state is InstanceState.PENDING else instance

    instance = context.poll(up, LAUNCH_SECONDS)
    if instance is None:
        raise RecoveryError(
            f"instance {context.instance_id} of {context.server} is still not up after {LAUNCH_SECONDS:g} s",
            "see what the site says about it, then retry",
        )
    if instance.state is not InstanceState.RUNNING:
        reason = f": {instance.detail}" if instance.detail else ""
        end = console_end(context.site, context.instance_id)
        raise RecoveryError(f"instance {context.instance_id} of {context.server} is {instance.state}{reason}{end}")
    return {
        "instance": instance.instance_id,
        "point": args["point"],
        "devices": args["devices"],
        "addresses": {str(port): list(address) for port, address in instance.addresses.items()},
    }


def launch_spec(run_id: str, args: Mapping[str, Any]) -> InstanceSpec:
    """What a launch step's args ask the site for."""
    return InstanceSpec(
        instance_id=args["instance_id"],
        run_id=run_id,
        server_id=args["server_id"],
        server_name=args["server"],
        points=[(VolumeKey(args["server_id"], index), args["point"]) for index in range(args["volumes"])],
        machine_id=args["machine_id"],
        serials=[volume_serial(args["server_id"], path) for path in args.get("sources", ())],
        cpus=args["cpus"],
        memory_mib=args["memory_mib"],
        network=NetworkMode(args["network"]),
        ports={int(guest): site for guest, site in args["ports"].items()},
        uefi=args["uefi"],
        devices=Devices(args.get("devices") or Devices.VIRTIO),
        size=args.get("size"),
        network_name=args.get("network_name"),
        address=args.get("address"),
    )


def gate(context: StepContext) -> dict[str, Any]:
    """The time limit starts anew when the step is resumed: while the service was away, nobody looked."""
    wanted = gate_from_json(context.args["gate"])
    agent = _Agent(context)
    if context.attempt and context.site.watch(context.instance_id).state is InstanceState.STOPPED:
        its_launch = next(step for step in context.run.launches() if step.args["instance_id"] == context.instance_id)
        context.site.launch(launch_spec(context.run.id, found_out(context.run, its_launch.args)))
    waits_for = f"{wanted}, for up to {wanted.timeout_seconds:g} s"
    context.say(waits_for)
    seen, said_at = "", context.clock.monotonic()

    def held() -> bool | None:
        nonlocal seen, said_at
        result = check_gate(wanted, context.site, context.instance_id, agent)
        seen = result.seen
        if not result.held and context.clock.monotonic() - said_at >= TELL_SECONDS:
            said_at = context.clock.monotonic()
            context.say(f"{waits_for}; last seen: {seen}")
        return True if result.held else None

    if context.poll(held, wanted.timeout_seconds) is None:
        end = console_end(context.site, context.instance_id)
        raise GateFailed(
            f"{context.server}: {wanted} did not come within {wanted.timeout_seconds:g} s; last seen: {seen}{end}"
        )
    return {"seen": seen}


class _Agent:
    """recovery.gates.GuestAgent, from what the service heard of the instance's agent."""

    def __init__(self, context: StepContext) -> None:
        self._context = context
        self._asked = 0
        self._failed_at: float | None = None
        self._said = ""

    def heartbeat(self) -> GateResult:
        server = self._context.control.server(self._context.run.tenant, self._context.server)
        if server.owner != self._context.machine_id.lower() or server.last_seen_seconds is None:
            return GateResult(False, "its agent has not made contact yet")
        seen = f"its agent made contact {server.last_seen_seconds:.0f} s ago"
        return GateResult(server.last_seen_seconds <= HEARTBEAT_SECONDS, seen)

    def command(self, name: str) -> GateResult:
        context = self._context
        now = context.clock.monotonic()
        if self._failed_at is not None and now - self._failed_at < COMMAND_REPEAT_SECONDS:
            return GateResult(False, self._said)
        request_id = f"{context.request_id}.{context.attempt}.{self._asked}"
        context.control.request_command(context.server_id, name, request_id)
        state = context.control.request_state(request_id)
        if state.error is not None:
            self._said, self._failed_at = f"{name}: {state.error}", now
            self._asked += 1
            return GateResult(False, self._said)
        if state.output is None:
            return GateResult(False, f"{name} was asked for, and its agent has not answered yet")
        return GateResult(True, f"{name} succeeded: {state.output[-200:]}".rstrip(": \n"))


def wait(context: StepContext) -> dict[str, Any]:
    """Counts from its first start: the guests went on while the service was away."""
    until = (context.step.started_at or context.clock.now()) + context.args["seconds"]
    context.say(f"{context.args['seconds']:g} s to pass")
    # by the wall clock, but never longer than was asked for: it may jump
    context.poll(lambda: True if context.clock.now() >= until else None, context.args["seconds"])
    return {}


def script(context: StepContext) -> dict[str, Any]:
    args = context.args
    if context.scripts is None:
        raise RecoveryError(f"script {args['argv'][0]} cannot be run: this service has no scripts folder")
    context.say(f"script {args['argv'][0]}, for up to {args['timeout_seconds']:g} s")
    environment = {
        "UNDERSTUDY_RUN": context.run.id,
        "UNDERSTUDY_KIND": context.run.kind.value,
        "UNDERSTUDY_PLAN": context.run.plan,
        "UNDERSTUDY_TENANT": context.run.tenant,
        "UNDERSTUDY_STEP": str(context.position + 1),
        "UNDERSTUDY_ATTEMPT": str(context.attempt + 1),
    }
    facts = {"servers": [_facts(context, found_out(context.run, step.args)) for step in context.run.launches()]}
    output = context.scripts.run(
        args["argv"], environment, facts, args["timeout_seconds"], context.clock, context.interrupt
    )
    if output is None:
        raise Interrupted
    return {"output": output}


def _facts(context: StepContext, args: Mapping[str, Any]) -> dict[str, Any]:
    """One server as a script is told of it."""
    instance = context.site.watch(args["instance_id"])
    return {
        "server": args["server"],
        "server_id": args["server_id"],
        "instance": args["instance_id"],
        "point": args["point"],
        "taken_at": args["taken_at"],
        "state": instance.state.value,
        "addresses": {str(port): f"{host}:{at}" for port, (host, at) in instance.addresses.items()},
    }
