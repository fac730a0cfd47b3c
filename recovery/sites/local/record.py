"""spec.json: what was asked for of an instance, and the ports chosen, under a seal.

Points are kept because such a record names them, so a bit that flipped in a point's id must not go unseen. A single one
is turned back, as the seal proves."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3

from agent.protocol.errors import SiteError
from recovery.bits import turned_back
from recovery.sites.contract import InstanceSpec, NetworkMode, VolumeKey
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
        document = {"spec": asdict(self.spec), "host_ports": dict(self.host_ports)}
        plain = json.loads(json.dumps(document))
        return json.dumps(plain | {"seal": _seal(plain)}, indent=1).encode()

    @staticmethod
    def from_bytes(content: bytes) -> Record:
        """Raises ValueError, KeyError, TypeError or AttributeError where it is damaged."""
        document: dict[str, Any] = json.loads(content)
        if document.pop("seal") != _seal(document):
            raise ValueError("the seal is another document's")
        spec = document["spec"]
        spec["ports"] = {int(guest): host for guest, host in spec["ports"].items()}
        spec["network"] = NetworkMode(spec["network"])
        spec["points"] = [(VolumeKey(**key), point) for key, point in spec["points"]]
        return Record(InstanceSpec(**spec), {int(guest): host for guest, host in document["host_ports"].items()})


def read(folder: Path) -> Record | None:
    """Of the instance with this folder; None: there is no record. Raises SiteError where it is damaged, OSError."""
    path = folder / NAME
    try:
        return _understood(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        raise SiteError(
            f"{path} is damaged",
            WAY_OUT,
        ) from None


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


def _understood(content: bytes) -> Record:
    """Raises ValueError."""
    try:
        return Record.from_bytes(content)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(str(error)) from None


def _is_sound(content: bytes) -> bool:
    try:
        _understood(content)
    except ValueError:
        return False
    return True


def _seal(document: dict[str, Any]) -> str:
    return blake3(json.dumps(document, sort_keys=True).encode()).hexdigest()
