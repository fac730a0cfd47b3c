"""What agents ask of the receiver, checked before anything is done for it. All raise BadMessage."""

from __future__ import annotations

from agent.protocol.errors import BadMessage
from agent.protocol.grid import BlockGrid
from agent.protocol.messages import MAX_VOLUMES, CommitRequest, VolumeDeclaration

MAX_LABEL_CHARACTERS = 500
MAX_PATH_CHARACTERS = 4096
MAX_AGE_SECONDS = 30 * 86_400.0
"""No push takes as long from the instant that its point shows to its commit."""


def grids_of(volumes: list[VolumeDeclaration]) -> list[BlockGrid]:
    if not 0 < len(volumes) <= MAX_VOLUMES:
        raise BadMessage(f"a push of {len(volumes)} volumes; 1 to {MAX_VOLUMES} are possible")
    paths = [path for volume in volumes for path in (volume.path, volume.found_at) if path is not None]
    if not all(0 < len(path) <= MAX_PATH_CHARACTERS for path in paths):
        raise BadMessage(f"a volume's path needs 1 to {MAX_PATH_CHARACTERS} characters")
    if len({volume.path for volume in volumes}) != len(volumes):
        raise BadMessage("one volume is named twice")
    return [BlockGrid(volume.size_bytes, volume.block_bytes) for volume in volumes]


def check_commit(request: CommitRequest) -> None:
    if not -MAX_AGE_SECONDS < request.age_seconds < MAX_AGE_SECONDS:
        raise BadMessage(f"an instant {request.age_seconds:g} seconds ago is no age of a recovery point")
    if len(request.label or "") > MAX_LABEL_CHARACTERS:
        raise BadMessage(f"the label is longer than {MAX_LABEL_CHARACTERS} characters", "shorten it")


def one_of(value: str, allowed: tuple[str, ...], name: str) -> str:
    if value not in allowed:
        raise BadMessage(f"{name} is {value!r}, and should be one of {', '.join(allowed)}")
    return value
