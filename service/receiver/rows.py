"""The rows about points, as far as the receiver needs them, and how they are made to say what the site holds."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Protocol

from agent.protocol.messages import Point
from service.receiver.manifest import Manifest

log = logging.getLogger(__name__)


class PointRows(Protocol):
    """The rows about points: a view of what the site holds."""

    def add(self, manifest: Manifest) -> None:
        """There already: does nothing."""
        ...

    def restore(self, manifests: list[Manifest]) -> None:
        """Make the rows of these say what they say, and in their order: each server's oldest first."""
        ...

    def remove(self, point_id: str) -> None: ...

    def newest_first(self, server_id: str) -> list[Point]: ...

    def listed(self, server_id: str | None = None) -> Mapping[str, list[str]]:
        """The ids of points, oldest first, by server; of one server, or of all."""
        ...


def agree_with(
    rows: PointRows, manifests: list[Manifest], listed: Mapping[str, list[str]], *, remove_others: bool = False
) -> None:
    """Make the rows of those servers say what their manifests say where a point is not `listed`, or as older than the
    one that it was made on. `remove_others`: the manifests are all that the site has."""
    places = {(server_id, point_id): place for server_id, ids in listed.items() for place, point_id in enumerate(ids)}
    wrong = set()
    for manifest in manifests:
        place = places.get((manifest.server_id, manifest.point.id))
        if place is None or places.get((manifest.server_id, manifest.parent or ""), -1) > place:
            wrong.add(manifest.server_id)
    if wrong:
        rows.restore([manifest for manifest in manifests if manifest.server_id in wrong])
    if remove_others:
        for gone in {point_id for _, point_id in places} - {manifest.point.id for manifest in manifests}:
            log.warning("point %s is listed, but the site does not hold it: the row is removed", gone)
            rows.remove(gone)


def highest_epochs(manifests: Iterable[Manifest]) -> dict[str, int]:
    """Of each server's points."""
    epochs: dict[str, int] = {}
    for manifest in manifests:
        epochs[manifest.server_id] = max(manifest.point.epoch, epochs.get(manifest.server_id, 0))
    return epochs
