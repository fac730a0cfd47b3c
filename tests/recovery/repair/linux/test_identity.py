"""What a copy of a server makes anew, to be a machine of its own."""

from __future__ import annotations

from pathlib import Path

from recovery.repair.draft import Draft
from recovery.repair.linux import identity
from recovery.repair.record import RepairRecord
from tests.recovery.repair.folder import FolderFiles, after

SSH = "/etc/ssh/ssh_host_ed25519_key"
AGENT = "/var/lib/understudy-agent/{}"
SERVER = {
    "/etc/machine-id": "0123456789abcdef0123456789abcdef\n",
    "/var/lib/dbus/machine-id": "0123456789abcdef0123456789abcdef\n",
    "/etc/hostname": "web01\n",
    SSH: "PRIVATE",
    f"{SSH}.pub": "public",
    "/usr/bin/ssh-keygen": "program",
    "/usr/lib/systemd/system/ssh.service": "[Service]\n",
    "/var/lib/systemd/random-seed": "seed",
    AGENT.format("identity.json"): "{}",
    AGENT.format("key.pem"): "PRIVATE",
    AGENT.format("protected.json"): "{}",
}


def test_a_copy_makes_its_own_ids_and_keys_and_keeps_the_rest(tmp_path: Path) -> None:
    draft = Draft(FolderFiles(tmp_path, SERVER))
    (finding,) = identity.renew(draft)
    assert finding.what == (
        "this copy gets its own: machine id, SSH host keys, random seed,"
        " agent's identity (enrol it anew if the copy is to be protected)"
    )
    changed = after(draft.changes())
    unit = changed.pop("/etc/systemd/system/ssh.service.d/understudy.conf")
    assert unit is not None
    assert "ssh-keygen -A" in unit
    assert changed == {
        "/etc/machine-id": "",
        "/var/lib/dbus/machine-id": None,
        SSH: None,
        f"{SSH}.pub": None,
        "/var/lib/systemd/random-seed": None,
        AGENT.format("identity.json"): None,
        AGENT.format("key.pem"): None,
    }
    record = RepairRecord(system="Linux", target="virtio", changes=draft.changes())
    assert "PRIVATE" not in record.diff(), "no record keeps a key"
    assert all(change.before != b"PRIVATE" for change in draft.changes())


def test_host_keys_stay_where_nothing_makes_new_ones_and_a_bare_system_has_nothing_to_renew(tmp_path: Path) -> None:
    draft = Draft(FolderFiles(tmp_path, {SSH: "PRIVATE"}))
    assert list(identity.renew(draft)) == []
    assert draft.changes() == ()
