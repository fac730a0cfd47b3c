"""What the closing steps of a drill do: they look back, and keep what they see. None of them changes what is proven."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from typing import Any

from agent.protocol.errors import Conflict, NotFound, RecoveryError, SiteError, StorageError, UnderstudyError
from recovery.actions.context import StepContext, giving_way
from recovery.drills.witness import CheckedFilesystem, CheckJob, Soundness, Witness
from recovery.gates import last_lines
from recovery.sites.contract import VolumeKey


def picture(context: StepContext) -> dict[str, Any]:
    """Of the screen, and what the console said last: many guests have nothing to show but that. A guest that died has
    no screen any more: that is said, and no failure of its own."""
    said: dict[str, Any] = {"console": []}
    try:
        said["console"] = last_lines(context.site.console(context.instance_id))
        shown = context.site.screenshot(context.instance_id)
    except NotFound:
        return {**said, "note": f"no picture: {context.server} was never launched, or is gone"}
    except (Conflict, SiteError) as error:
        return {**said, "note": f"no picture: {error.message}"}
    return {**said, **_witness(context).keep_picture(context.run.id, context.server_id, shown)}


def filesystems(context: StepContext) -> dict[str, Any]:
    """Of the point itself, through scratch layers: the guest goes on meanwhile. Raises RecoveryError (damaged)."""
    witness = _witness(context)
    if reason := witness.why_unchecked():
        return {"note": f"not checked: {reason}", "filesystems": []}
    context.say("the point's filesystems are checked")
    keys = [VolumeKey(context.server_id, index) for index in range(context.args["volumes"])]
    point = context.args["point"]
    with contextlib.ExitStack() as held:
        for key in keys:  # what is open for reading is not merged or removed meanwhile
            held.enter_context(contextlib.closing(context.site.open_snapshot(key, point)))
        job = CheckJob(
            run_id=context.run.id,
            server_id=context.server_id,
            volumes=[context.site.snapshot_location(key, point) for key in keys],
            stopped=context.interrupt.is_set,
        )
        try:
            with giving_way(context.interrupt):
                found = witness.check_filesystems(job)
        except StorageError:
            raise
        except UnderstudyError as error:
            return {"note": f"not checked: {error.message}", "filesystems": []}
    result = {"note": _in_words(found), "filesystems": [asdict(filesystem) for filesystem in found]}
    damaged = [filesystem for filesystem in found if filesystem.soundness is Soundness.DAMAGED]
    if damaged:
        context.step.result = result  # a step that fails keeps what it saw
        raise RecoveryError(
            f"{context.server}: the {damaged[0].kind} on {damaged[0].where} is damaged in point {point}:"
            f" {damaged[0].said}",
            "repair it at the source, and take a new point; older points may be sound: --point",
        )
    return result


def evidence(context: StepContext) -> dict[str, Any]:
    return _witness(context).testify(context.run)


def _witness(context: StepContext) -> Witness:
    if context.witness is None:
        raise RecoveryError("this service keeps no evidence of drills")
    return context.witness


def _in_words(found: list[CheckedFilesystem]) -> str:
    """`2 sound; 1 unknown (ext4 on volume 0: why)`."""
    sound = sum(filesystem.soundness is Soundness.SOUND for filesystem in found)
    others = [
        f"{filesystem.soundness}: {filesystem.kind} on {filesystem.where} ({filesystem.said})"
        for filesystem in found
        if filesystem.soundness is not Soundness.SOUND
    ]
    return "; ".join([f"{sound} sound" if found else "no filesystem with a checker was found", *others])
