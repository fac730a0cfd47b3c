"""Keeps what drills prove, in a folder a run: pictures, the signed evidence, and its page.

DATA/drills/<run>/<server id>.png      a screen when the verdict was there
                  <run>.json           the signed evidence; written last: with it, the rest is there
                  <run>.html           the same for people
"""

from __future__ import annotations

import hashlib
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agent.protocol.errors import NotFound, StorageError
from recovery.drills.filesystems import FilesystemChecks
from recovery.drills.witness import CheckedFilesystem, CheckJob
from recovery.repair.record import RepairRecord
from recovery.runs import Run
from recovery.sites.local.durable import check_name, make_folder, storage_errors, write_file
from service.evidence.facts import Sources, gather
from service.evidence.page import render
from service.evidence.seal import sealed

PUBLIC_KEY = "sign.pub"


class Documents(Protocol):
    """The site's, as far as evidence needs them."""

    def read_document(self, server_id: str, name: str) -> bytes: ...


class EvidenceKeeper:
    """`repair_of` gives the record of a boot repair by run and server id; `plan_text` a plan as it was written, by
    tenant and name, None for a default plan. `checks` None: no filesystem can be checked, and `unchecked` says why."""

    def __init__(
        self,
        folder: Path,
        key: Ed25519PrivateKey,
        site: Documents,
        repair_of: Callable[[str, str], RepairRecord | None],
        plan_text: Callable[[str, str], str | None],
        checks: FilesystemChecks | None,
        unchecked: str | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._folder = folder
        self._key = key
        self._site = site
        self._repair_of = repair_of
        self._plan_text = plan_text
        self._checks = checks
        self._unchecked = unchecked
        self._now = now

    # --- recovery.drills.witness.Witness ---

    def keep_picture(self, run_id: str, server_id: str, picture: bytes) -> dict[str, Any]:
        kind = "png" if picture.startswith(b"\x89PNG") else "jpg"
        name = f"{check_name(server_id, 'a server')}.{kind}"
        self._write(run_id, name, picture)
        return {"file": name, "sha256": hashlib.sha256(picture).hexdigest()}

    def why_unchecked(self) -> str | None:
        return self._unchecked if self._checks is None else None

    def check_filesystems(self, job: CheckJob) -> list[CheckedFilesystem]:
        if self._checks is None:
            raise NotFound(f"filesystems are not checked here: {self._unchecked}")
        return self._checks(job)

    def testify(self, run: Run) -> dict[str, Any]:
        manifests, repairs = {}, {}
        for launch in run.launches():
            server_id = launch.args["server_id"]
            if (manifest := self._manifest(server_id, launch.args["point"])) is not None:
                manifests[server_id] = manifest
            if (repair := self._repair_of(run.id, server_id)) is not None:
                repairs[server_id] = repair
        text = self._plan_text(run.tenant, run.plan)
        sources = Sources(manifests=manifests, repairs=repairs, plan_text=text, host=socket.gethostname())
        facts = gather(run, sources, self._now())
        key_sha256 = hashlib.sha256(self._public_key()).hexdigest()
        page = render(facts, self._pictures(run.id, facts), key_sha256)
        report = {"file": f"{run.id}.html", "sha256": hashlib.sha256(page).hexdigest()}
        document = sealed({**facts, "report": report}, self._key)
        self._write(run.id, report["file"], page)
        self._write(run.id, f"{run.id}.json", document)
        return {
            "note": f"signed: understudy evidence {run.id}",
            "verdict": facts["verdict"],
            "sha256": hashlib.sha256(document).hexdigest(),
        }

    # --- what the API gives out ---

    def files(self, run_id: str) -> list[str]:
        """The names of a run's evidence, its JSON first. Raises NotFound where there is none (yet)."""
        folder = self._of(run_id)
        main = f"{run_id}.json"
        with storage_errors(f"list the evidence of {run_id}"):
            if not (folder / main).exists():
                raise NotFound(
                    f"there is no evidence of {run_id}",
                    "drills leave some once their verdict is there, and it is kept for a time: understudy runs",
                )
            others = sorted(
                path.name for path in folder.iterdir() if not path.name.startswith(".") and path.name != main
            )
        return [main, *others, PUBLIC_KEY]

    def content(self, run_id: str, name: str) -> bytes:
        """Raises NotFound."""
        if name not in self.files(run_id):
            raise NotFound(f"the evidence of {run_id} has no {name}")
        if name == PUBLIC_KEY:
            return self._public_key()
        with storage_errors(f"read {name} of {run_id}"):
            return (self._of(run_id) / name).read_bytes()

    def _public_key(self) -> bytes:
        return self._key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def _manifest(self, server_id: str, point: str) -> dict[str, Any] | None:
        """None where it is not there any more, or damaged; then the evidence cannot vouch for the point's root."""
        try:
            document: dict[str, Any] = json.loads(self._site.read_document(server_id, f"{point}.json"))
            json.loads(document["manifest"])["point"]["root"]
        except (NotFound, StorageError, ValueError, KeyError, TypeError):
            return None
        return document

    def _pictures(self, run_id: str, facts: dict[str, Any]) -> dict[str, bytes]:
        names = [server["picture"]["file"] for server in facts["servers"] if server["picture"]]
        with storage_errors(f"read the pictures of {run_id}"):
            return {name: (self._of(run_id) / name).read_bytes() for name in names if name}

    def _write(self, run_id: str, name: str, content: bytes) -> None:
        folder = self._of(run_id)
        with storage_errors(f"keep {name} of {run_id}"):
            make_folder(folder)
            write_file(folder / name, content)

    def _of(self, run_id: str) -> Path:
        return self._folder / check_name(run_id, "a run")
