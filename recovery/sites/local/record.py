"""spec.json: what was asked for of an instance, and the ports chosen, under a seal.

Points are kept because such a record names them, so a bit that flipped in a point's id must not go unseen. A single one
is turned back, as the seal proves."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from agent.protocol.errors import SiteError
from recovery.seals import opened, sealed, turned_back
from recovery.sites.contract import Devices, InstanceSpec, NetworkMode, VolumeKey
from recovery.sites.local.durable import write_file

NAME = "spec.json"
WAY_OUT = "restore it from a copy, or end the instance: understudy end RUN; until then no point is removed"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Record:
    """`host_ports`: guest -> host."""

    spec: InstanceSpec
    host_ports: Mapping[int, int]

    def to_bytes(self) -> bytes:
        return sealed({"spec": asdict(self.spec), "host_ports": dict(self.host_ports)})

    @staticmethod
    def from_bytes(content: bytes) -> Record:
        """Raises ValueError where it is damaged."""
        document = opened(content)
        try:
            spec = document["spec"]
            spec["ports"] = {int(guest): host for guest, host in spec["ports"].items()}
            spec["network"] = NetworkMode(spec["network"])
            spec["devices"] = Devices(spec["devices"])
            spec["points"] = [(VolumeKey(**key), point) for key, point in spec["points"]]
            return Record(InstanceSpec(**spec), {int(guest): host for guest, host in document["host_ports"].items()})
        except (KeyError, TypeError, AttributeError) as error:  # of another version
            raise ValueError(str(error)) from None


def read(folder: Path) -> Record | None:
    """Of the instance with this folder; None: there is no record. Raises SiteError where it is damaged, OSError."""
    path = folder / NAME
    try:
        return Record.from_bytes(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        raise SiteError(f"{path} is damaged", WAY_OUT) from None


def write(folder: Path, record: Record) -> None:
    write_file(folder / NAME, record.to_bytes())


def mend(folder: Path) -> None:
    """Turn a single flipped bit back. Where that is not it, all stays as it is."""
    path = folder / NAME
    try:
        content = path.read_bytes()
        if not _is_sound(content) and (healed := turned_back(content, _is_sound)) is not None:
            write_file(path, healed)
            log.warning("%s: a bit had flipped, and was turned back", path)
    except OSError as error:
        log.warning("%s cannot be looked at: %s", path, error)


def _is_sound(content: bytes) -> bool:
    try:
        Record.from_bytes(content)
    except ValueError:
        return False
    return True
