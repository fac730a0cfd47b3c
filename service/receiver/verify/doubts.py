"""Doubts: blocks of the newest point that are known to be damaged. What is pushed next stands on that point, so these
are read back when its working state is opened, the roots then differ, and the agent sends them again.

A doubt that is out of date costs reading a block; the next verification of the newest point takes it away.
"""

from __future__ import annotations

from agent.protocol.errors import NotFound
from agent.protocol.grid import MAX_VOLUME_BYTES
from recovery.seals import opened, sealed
from recovery.sites.contract import Extent, Site, VolumeKey

_EVERYTHING = [Extent(0, MAX_VOLUME_BYTES)]


class Doubts:
    """Kept as sealed documents at the site: [[offset, length], ...] of each volume that has any."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def of(self, key: VolumeKey) -> list[Extent]:
        """Where the volume's newest point is in doubt; everywhere if nobody can tell."""
        try:
            content = self._site.read_document(key.server_id, _name(key))
        except NotFound:
            return []
        try:
            return [Extent(offset, length) for offset, length in opened(content)["extents"]]
        except ValueError:
            return _EVERYTHING

    def replace(self, key: VolumeKey, extents: list[Extent]) -> None:
        if extents:
            content = sealed({"extents": [[extent.offset, extent.length] for extent in extents]})
            self._site.write_document(key.server_id, _name(key), content)
        else:
            self._site.delete_document(key.server_id, _name(key))

    def add(self, key: VolumeKey, extents: list[Extent]) -> None:
        known = self.of(key)
        self.replace(key, known + [extent for extent in extents if extent not in known])


def _name(key: VolumeKey) -> str:
    return f"volume-{key.index}.doubts"
