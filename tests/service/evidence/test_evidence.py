"""Evidence: signed, whole, and checked by somebody who has the files and the public key, and nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agent.protocol.errors import NotFound, SiteError, StorageError, UsageError
from recovery.repair.record import FileChange, Finding, RepairRecord
from recovery.runs import Run, RunKind, Step, StepState
from service.evidence.keeper import EvidenceKeeper
from service.evidence.verify import verify_evidence
from service.receiver.manifest import Manifest, point_root, sealed
from tests.service.store.rows_for_tests import manifest

PICTURE = b"\x89PNG\r\n\x1a\nwhat a screen showed"
HOSTILE = "<script>alert(1)</script> & \"'"


class Documents:
    def __init__(self, key: Ed25519PrivateKey) -> None:
        plain = manifest("pt-1")
        roots = [bytes.fromhex(volume.root) for volume in plain.point.volumes]
        point = {**{name: getattr(plain.point, name) for name in plain.point.__dataclass_fields__}}
        point["root"] = point_root(roots).hex()
        signed = Manifest(point=type(plain.point)(**point), server_id="srv-1", tenant="default")
        self.documents = {("srv-1", "pt-1.json"): sealed(signed, key)}

    def read_document(self, server_id: str, name: str) -> bytes:
        if (server_id, name) not in self.documents:
            raise NotFound(name)
        return self.documents[server_id, name]


class Office:
    def __init__(self, folder: Path) -> None:
        self.key = Ed25519PrivateKey.generate()
        self.documents = Documents(self.key)
        self.repair: RepairRecord | None = None
        self.keeper = EvidenceKeeper(
            folder,
            self.key,
            self.documents,
            repair_of=lambda run_id, server_id: self.repair,
            plan_text=lambda tenant, plan: None,
            checks=None,
            unchecked="no kernel",
            now=lambda: 2000.0,
        )

    def give_out(self, run_id: str, folder: Path) -> tuple[str, str]:
        """As `understudy evidence` does: (the JSON file, the key)."""
        folder.mkdir()
        names = self.keeper.files(run_id)
        for name in names:
            (folder / name).write_bytes(self.keeper.content(run_id, name))
        return str(folder / names[0]), str(folder / names[-1])


@pytest.fixture
def office(tmp_path: Path) -> Office:
    return Office(tmp_path / "drills")


def drill(seen: str = "login:", gate: StepState = StepState.DONE) -> Run:
    about = {"server": "web01", "server_id": "srv-1", "instance_id": "i-1", "machine_id": "m-1"}
    boot = {"point": "pt-1", "taken_at": "2026-01-31T14:30:00.000Z", "cpus": 2, "memory_mib": 512, "uefi": False}
    console = {"console": {"text": "login:", "timeout_seconds": 60.0}}
    done: dict[str, Any] = {"state": StepState.DONE, "started_at": 1000.0, "ended_at": 1004.5}
    error = None if gate is StepState.DONE else HOSTILE
    return Run(
        id="drill-1",
        tenant="default",
        kind=RunKind.DRILL,
        plan="web01",
        created_at=999.0,
        steps=[
            Step(name="repair web01", action="repair", args=about | boot, result={"note": "repaired"}, **done),
            Step(name="launch web01", action="launch", args={**about, **boot, "network": "isolated"}, **done),
            Step(
                name="gate web01",
                action="gate",
                args={**about, "gate": console},
                result={"seen": seen},
                **{**done, "state": gate, "error": error},
            ),
            Step(name="picture of web01", action="picture", args=about, closing=True, **done),
            Step(name="filesystems of web01", action="filesystems", args=about, closing=True, **done),
            Step(name="evidence", action="evidence", closing=True, state=StepState.RUNNING, started_at=1005.0),
        ],
    )


def witnessed(office: Office, run: Run) -> dict[str, Any]:
    picture = next(step for step in run.steps if step.action == "picture")
    picture.result = {"console": [HOSTILE], **office.keeper.keep_picture(run.id, "srv-1", PICTURE)}
    filesystems = next(step for step in run.steps if step.action == "filesystems")
    filesystems.result = {"note": "1 sound", "filesystems": [{"where": "volume 0", "kind": "ext4"}]}
    return office.keeper.testify(run)


def facts_of(path: str) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(json.loads(Path(path).read_bytes())["evidence"])
    return facts


def test_evidence_says_what_when_which_point_and_what_came_of_each_step(office: Office, tmp_path: Path) -> None:
    office.repair = RepairRecord(
        system="Debian 12",
        target="virtio, BIOS",
        findings=(Finding("stop", "no virtio driver", repaired=True),),
        changes=(FileChange(path="/boot/initrd.img", before=b"a", after=b"b"),),
    )
    result = witnessed(office, drill())
    assert result["verdict"] == "held"
    path, key = office.give_out("drill-1", tmp_path / "out")
    assert hashlib.sha256(Path(path).read_bytes()).hexdigest() == result["sha256"]
    checked = verify_evidence(path, key)
    assert checked.proven == ["drill-1.html", "srv-1.png"]
    assert checked.absent == []
    facts = checked.facts
    assert (facts["verdict"], facts["rto_seconds"], facts["signed_at"]) == ("held", 5.5, "1970-01-01T00:33:20.000Z")
    (server,) = facts["servers"]
    assert (server["point"], server["root"]) == ("pt-1", json.loads(server["manifest"]["manifest"])["point"]["root"])
    assert server["gates"][0]["gate"] == "'login:' on the console"
    assert server["gates"][0]["seconds"] == 4.5
    assert server["repair"]["changes"] == ["/boot/initrd.img"]
    assert server["repair"]["diff_sha256"] == hashlib.sha256(office.repair.diff().encode()).hexdigest()
    assert server["picture"]["sha256"] == hashlib.sha256(PICTURE).hexdigest()
    assert server["filesystems"]["found"][0]["kind"] == "ext4"
    assert [step["name"] for step in facts["steps"]][-1] == "filesystems of web01"
    assert "root" in checked.text()
    assert json.dumps(checked.to_json())


def test_the_page_holds_the_picture_and_nothing_of_a_guests_runs_in_it(office: Office, tmp_path: Path) -> None:
    witnessed(office, drill(seen=HOSTILE, gate=StepState.FAILED))
    path, key = office.give_out("drill-1", tmp_path / "out")
    page = Path(path).with_suffix(".html").read_text()
    assert base64.b64encode(PICTURE).decode() in page
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "default-src 'none'" in page
    checked = verify_evidence(path, key)
    assert checked.facts["verdict"] == "failed"
    assert "it FAILED at 'gate web01'" in checked.text()


def test_a_repair_that_failed_of_a_server_that_came_up_is_a_warning_in_the_evidence(
    office: Office, tmp_path: Path
) -> None:
    run = drill()
    run.steps[0].state, run.steps[0].error, run.steps[0].result = (
        StepState.FAILED,
        f"cannot be read: {HOSTILE}\nmore",
        {},
    )
    assert witnessed(office, run)["verdict"] == "held"
    path, key = office.give_out("drill-1", tmp_path / "out")
    checked = verify_evidence(path, key)
    (warning,) = checked.facts["warnings"]
    assert (warning["name"], warning["state"]) == ("repair web01", "failed")
    assert checked.facts["rto_seconds"] is not None
    assert "every gate held" in checked.text()
    assert "  warning: repair web01: cannot be read: " in checked.text()
    page = Path(path).with_suffix(".html").read_text()
    assert "<td>Warning</td><td>repair web01: cannot be read: &lt;script&gt;" in page


def test_the_page_tells_an_auditor_how_old_the_point_was_and_which_key_to_expect(
    office: Office, tmp_path: Path
) -> None:
    run = drill()
    launch = next(step for step in run.steps if step.action == "launch")
    launch.args["taken_at"] = "1970-01-01T00:11:39.000Z"
    launch.state, launch.error = StepState.FAILED, "instance i-1 is stopped: no memory\nand much more"
    witnessed(office, run)
    path, key = office.give_out("drill-1", tmp_path / "out")
    page = Path(path).with_suffix(".html").read_text()
    assert "taken 1970-01-01 00:11:39 UTC, 5 min before the button was pressed; crash-consistent" in page
    assert "failed: instance i-1 is stopped: no memory" in page
    assert "and much more" not in page
    assert hashlib.sha256(Path(key).read_bytes()).hexdigest() in page
    assert "understudy evidence verify drill-1.json --key sign.pub" in page


def test_any_byte_that_was_altered_is_found(office: Office, tmp_path: Path) -> None:
    witnessed(office, drill())
    path, key = office.give_out("drill-1", tmp_path / "out")
    for name in ("drill-1.html", "srv-1.png"):
        beside = tmp_path / "out" / name
        content = beside.read_bytes()
        beside.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(StorageError, match="is not what was signed"):
            verify_evidence(path, key)
        beside.write_bytes(content)
    document = Path(path).read_bytes()
    Path(path).write_bytes(document.replace(b"held", b"helt", 1))
    with pytest.raises(StorageError, match="signature"):
        verify_evidence(path, key)
    for damaged in (b"", b"[]", b"{}", document[: len(document) // 2], b'{"evidence": 1, "signature": 1}', b"\xff" * 9):
        Path(path).write_bytes(damaged)
        with pytest.raises(StorageError):
            verify_evidence(path, key)


def test_another_services_key_proves_nothing(office: Office, tmp_path: Path) -> None:
    witnessed(office, drill())
    path, _ = office.give_out("drill-1", tmp_path / "out")
    stranger = Office(tmp_path / "stranger")
    witnessed(stranger, drill())
    _, key = stranger.give_out("drill-1", tmp_path / "theirs")
    with pytest.raises(StorageError, match="is not this key's"):
        verify_evidence(path, key)


def test_a_manifest_that_another_key_signed_is_no_proof_of_a_point(office: Office, tmp_path: Path) -> None:
    office.documents = Documents(Ed25519PrivateKey.generate())
    office.keeper._site = office.documents
    witnessed(office, drill())
    path, key = office.give_out("drill-1", tmp_path / "out")
    with pytest.raises(StorageError, match="manifest"):
        verify_evidence(path, key)


def test_files_that_did_not_come_along_are_named_and_a_point_without_manifest_is_told(
    office: Office, tmp_path: Path
) -> None:
    office.documents.documents.clear()
    witnessed(office, drill())
    path, key = office.give_out("drill-1", tmp_path / "out")
    shutil.copy(path, tmp_path / "alone.json")
    checked = verify_evidence(str(tmp_path / "alone.json"), key)
    assert (checked.proven, checked.absent) == ([], ["drill-1.html", "srv-1.png"])
    assert "its manifest could not be read" in checked.text()


def test_a_drill_that_is_witnessed_again_replaces_what_was_kept(office: Office, tmp_path: Path) -> None:
    witnessed(office, drill(gate=StepState.FAILED))
    witnessed(office, drill())
    path, key = office.give_out("drill-1", tmp_path / "out")
    assert verify_evidence(path, key).facts["verdict"] == "held"


def test_what_is_no_evidence_is_not_given_out(office: Office, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no evidence of drill-9"):
        office.keeper.files("drill-9")
    with pytest.raises(SiteError):
        office.keeper.files("../pki")
    witnessed(office, drill())
    for name in ("../../pki/sign.key", "nothing.png", ".."):
        with pytest.raises(NotFound):
            office.keeper.content("drill-1", name)
    with pytest.raises(UsageError):
        verify_evidence(str(tmp_path / "nothing.json"), str(tmp_path / "nothing.pub"))
