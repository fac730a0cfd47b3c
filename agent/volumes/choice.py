"""Which disk of this machine is a protected volume? Pure: decided from evidence; with doubt there is no answer.

A kernel's name for a disk means something only on the machine where it was given, and there only until the next boot.
So how the disk looked when it was last seen is compared with what there is now, in this order:

1. The very same device: attached in this boot of this machine, not replaced since, and with the serial number that it
   had (a LUN may be mapped to another disk). What is on it may have changed.
2. The recovery site's word: it gives an instance's disks serial numbers that name the volumes.
3. Its marks (agent.volumes.marks): the one disk that bears them all. Copies bear the same ones: of several it is the
   one from which this agent runs, if it ran from the volume then; on the same machine else the one for which name and
   serial number both speak.
4. None bears them: on the same machine its owner may have partitioned it anew. Then name, size and serial number are
   those it had.

To push a wrong disk under a volume's identity is the worst that can happen here; to push nothing is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from agent.protocol.errors import SourceInDoubt
from agent.volumes.candidates import Candidate
from agent.volumes.sighting import Sighting


def choose(seen: Sighting, disks: Sequence[Candidate], *, machine_id: str, named: str | None) -> Candidate:
    """The one of `disks` (each once) that is the volume. `named`: the serial number by which a recovery site names it.

    Raises SourceInDoubt, saying why and the way out."""
    here = disks if seen.machine_id == machine_id else ()
    at_name = next((disk for disk in here if disk.device == seen.device), None)
    if at_name is not None and is_same_device(seen, at_name.attachment, at_name.serial):
        return at_name
    by_site = [disk for disk in disks if named and disk.serial == named]
    if len(by_site) > 1:
        raise _doubt(seen, f"{_names(by_site)} all have the serial number that names it")
    if by_site:
        return by_site[0]
    twins = [disk for disk in here if disk.serial and disk.serial == seen.serial]
    twin = twins[0] if len(twins) == 1 else None
    bearers = [disk for disk in disks if seen.marks and disk.marks == seen.marks]
    if not bearers:
        chosen = _partitioned_anew(seen, at_name)
    elif len(bearers) > 1:
        chosen = _one_of_copies(seen, bearers, at_name, twin)
    else:
        (chosen,) = bearers
        if twin is not None and twin is not chosen and at_name is not chosen:
            raise _doubt(seen, f"{chosen.device} bears its marks, but {twin.device} has its serial number")
    runs_from = [disk for disk in disks if seen.holds_state and disk.holds_state]
    if runs_from and chosen not in runs_from:
        raise _doubt(seen, f"this agent ran from it, and does not run from {chosen.device}")
    return chosen


def is_same_device(seen: Sighting, attachment: str | None, serial: str) -> bool:
    """Is what has these now, on the machine where it was seen, the very device that was seen?"""
    return attachment is not None and (attachment, serial) == (seen.attachment, seen.serial)


def _one_of_copies(
    seen: Sighting, bearers: list[Candidate], at_name: Candidate | None, twin: Candidate | None
) -> Candidate:
    running = [disk for disk in bearers if seen.holds_state and disk.holds_state]
    if len(running) == 1:
        return running[0]
    spoken_for = [disk for disk in bearers if disk in (at_name, twin)]
    if len(spoken_for) == 1 and spoken_for[0].serial == seen.serial:
        return spoken_for[0]
    raise _doubt(seen, f"{_names(bearers)} all bear its marks ({', '.join(seen.marks)}), as copies do")


def _partitioned_anew(seen: Sighting, at_name: Candidate | None) -> Candidate:
    if seen.marks:
        nowhere = f"no disk of this machine bears its marks ({', '.join(seen.marks)})"
    else:
        nowhere = "nothing lay on it that would tell it from others"
    if at_name is None:
        raise _doubt(seen, nowhere)
    if at_name.size_bytes != seen.size_bytes:
        raise _doubt(seen, f"{nowhere}, and {at_name.device} has another size than it had")
    if at_name.serial != seen.serial:
        raise _doubt(seen, f"{nowhere}, and {at_name.device} has another serial number than it had")
    return at_name


def _doubt(seen: Sighting, why: str) -> SourceInDoubt:
    return SourceInDoubt(
        f"which disk is the volume protected as {seen.path} cannot be told: {why}",
        "nothing was sent; look at understudy-agent inventory, and if one of its disks is the volume, say which: "
        f"understudy-agent relocate {seen.path} DISK",
    )


def _names(disks: Iterable[Candidate]) -> str:
    return " and ".join(disk.device for disk in disks)
