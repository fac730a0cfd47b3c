"""Evidence checked with the public key alone: no service, no database, no network."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from agent.protocol.errors import StorageError
from service.evidence.seal import opened
from service.files import read_named
from service.offline import read_public_key
from service.receiver.manifest import unsealed

MAX_EVIDENCE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedEvidence:
    """`proven` are files beside the evidence that are what was signed; `absent` were not there to be compared."""

    facts: dict[str, Any]
    proven: list[str]
    absent: list[str]

    def to_json(self) -> dict[str, Any]:
        names = ("run", "plan", "tenant", "verdict", "rto_seconds", "began_at", "signed_at")
        return {
            **{name: self.facts[name] for name in names},
            "signature": "valid",
            "servers": [
                {name: server[name] for name in ("server", "point", "root")} for server in self.facts["servers"]
            ],
            "files_verified": self.proven,
            "files_absent": self.absent,
        }

    def text(self) -> str:
        facts = self.facts
        rto = "" if facts["rto_seconds"] is None else f", RTO {facts['rto_seconds']:.1f} s"
        verdict = "every gate held" if facts["verdict"] == "held" else f"it FAILED at '{facts['failed_at']}'"
        lines = [f"{facts['run']} of {facts['plan']}, {facts['began_at']}: the signature is valid; {verdict}{rto}"]
        lines += [f"  warning: {step['name']}: {step['error'].splitlines()[0]}" for step in facts.get("warnings", [])]
        for server in facts["servers"]:
            root = f"root {server['root']}, signed" if server["root"] else "its manifest could not be read"
            lines.append(f"  {server['server']}: point {server['point']} of {server['taken_at']}; {root}")
            lines += [f"    {gate['gate']}: {gate['state']}" for gate in server["gates"]]
        lines += [f"  {name}: as it was signed" for name in self.proven]
        lines += [f"  {name}: not here, so not looked at" for name in self.absent]
        return "\n".join(lines)


def verify_evidence(path: str, key_path: str) -> VerifiedEvidence:
    """Check the signature, each point's manifest in it, and the files beside it.

    Raises StorageError (altered or damaged), UsageError (a file cannot be read as what it should be)."""
    key = read_public_key(key_path)
    facts = opened(read_named(path, MAX_EVIDENCE_BYTES), key)
    proven, absent = [], []
    try:
        for server in facts["servers"]:
            _check_manifest(server, key)
        pictures = [server["picture"] for server in facts["servers"] if server["picture"]]
        for entry in [facts["report"], *(picture for picture in pictures if picture["file"])]:
            beside = Path(path).parent / Path(entry["file"]).name
            if not beside.exists():
                absent.append(entry["file"])
            elif hashlib.sha256(read_named(beside, MAX_EVIDENCE_BYTES)).hexdigest() == entry["sha256"]:
                proven.append(entry["file"])
            else:
                raise StorageError(
                    f"{beside} is not what was signed: its SHA-256 differs", "get it again: understudy evidence RUN"
                )
    except (KeyError, TypeError) as error:
        raise StorageError(f"the evidence lacks {error}", "use the newer version") from None
    return VerifiedEvidence(facts=facts, proven=proven, absent=absent)


def _check_manifest(server: dict[str, Any], key: Ed25519PublicKey) -> None:
    """The point's own signed manifest says the same of it. Raises StorageError."""
    if server["manifest"] is None:
        return
    manifest = unsealed(json.dumps(server["manifest"]).encode(), key)
    said = (manifest.point.id, manifest.server_id, manifest.point.root)
    if said != (server["point"], server["server_id"], server["root"]):
        raise StorageError(f"the manifest in the evidence is of {manifest.point.id}, and {server['point']} was booted")
