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
    "/etc/hostname": "web01.example.com\n",
    "/etc/hosts": "127.0.0.1 localhost\n127.0.1.1 web01.example.com web01  # itself\n192.0.2.9 db01 web01\n",
    "/usr/bin/cloud-init": "program",
    "/var/lib/dhcp/dhclient.eth0.leases": "lease {}",
    "/var/lib/NetworkManager/secret_key": "SECRET",
    "/var/lib/NetworkManager/internal-1-eth0.lease": "ADDRESS=192.0.2.7",
    "/var/lib/NetworkManager/NetworkManager.state": "[main]",
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
    (finding,) = identity.renew(draft, "web01-clone-1")
    assert finding.what == (
        "this copy gets its own: host name (web01-clone-1), machine id, SSH host keys, random seed,"
        " DHCP leases and client ids, agent's identity (enrol it anew if the copy is to be protected)"
    )
    changed = after(draft.changes())
    unit = changed.pop("/etc/systemd/system/ssh.service.d/understudy.conf")
    assert unit is not None
    assert "ssh-keygen -A" in unit
    assert changed.pop("/etc/hosts") == (
        "127.0.0.1 localhost\n127.0.1.1\tweb01-clone-1.example.com web01-clone-1 web01.example.com web01 # itself\n"
        "192.0.2.9 db01 web01\n"
    )
    assert "preserve_hostname: true" in (changed.pop("/etc/cloud/cloud.cfg.d/99_understudy_clone.cfg") or "")
    assert changed == {
        "/etc/hostname": "web01-clone-1.example.com\n",
        "/var/lib/dhcp/dhclient.eth0.leases": None,
        "/var/lib/NetworkManager/secret_key": None,
        "/var/lib/NetworkManager/internal-1-eth0.lease": None,
        "/etc/machine-id": "",
        "/var/lib/dbus/machine-id": None,
        SSH: None,
        f"{SSH}.pub": None,
        "/var/lib/systemd/random-seed": None,
        AGENT.format("identity.json"): None,
        AGENT.format("key.pem"): None,
    }
    record = RepairRecord(system="Linux", target="virtio", changes=draft.changes())
    assert not {"PRIVATE", "SECRET"} & set(record.diff().split()), "no record keeps a key"
    assert all(change.before != b"PRIVATE" for change in draft.changes())


def test_host_keys_stay_where_nothing_makes_new_ones_and_a_bare_system_gets_its_name(tmp_path: Path) -> None:
    draft = Draft(FolderFiles(tmp_path, {SSH: "PRIVATE"}))
    (finding,) = identity.renew(draft, "test-1")
    assert finding.what == "this copy gets its own: host name (test-1)"
    assert after(draft.changes()) == {"/etc/hostname": "test-1\n", "/etc/hosts": "127.0.1.1\ttest-1\n"}


def test_a_copy_reaches_itself_by_both_names_beside_localhost(tmp_path: Path) -> None:
    hosts = "::1 localhost web01\n127.0.0.1\tlocalhost web01\n# 127.0.0.1 web01\n\n10.0.0.1 web01.other\n"
    draft = Draft(FolderFiles(tmp_path, {"/etc/hostname": "# ours\nweb01\n", "/etc/hosts": hosts}))
    list(identity.renew(draft, "web01-clone-1"))
    assert after(draft.changes())["/etc/hosts"] == (
        "::1\tlocalhost web01-clone-1 web01\n127.0.0.1\tlocalhost web01-clone-1 web01\n# 127.0.0.1 web01\n\n"
        "10.0.0.1 web01.other\n"
    )
