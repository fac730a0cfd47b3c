"""Parsing mountinfo and swaps, on lines of real machines."""

from __future__ import annotations

from agent.volumes.mounts import Mount, parse_mountinfo, parse_swaps, read_mounts, read_swaps

MOUNTINFO = r"""
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:1 / / rw,relatime shared:1 master:2 - ext4 /dev/root rw,errors=remount-ro
60 27 8:17 / /srv/two\040words rw - xfs /dev/sdb1 rw,attr2
61 27 8:17 /sub /mnt/bind ro,relatime - xfs /dev/sdb1 rw,attr2
62 27 8:33 / /mnt/cd ro,relatime - iso9660 /dev/sdc1 ro
this is no mount
63 27 0:50 / /net rw - nfs4 server:/export rw,vers=4.2
""".lstrip()


def test_every_mount_is_read_with_its_superblocks_own_state() -> None:
    mounts = {mount.mountpoint: mount for mount in parse_mountinfo(MOUNTINFO)}
    assert mounts["/"] == Mount(27, "254:1", "/", "ext4", "/dev/root", False)
    assert not mounts["/mnt/bind"].read_only, "only the bind mount is, the filesystem is written elsewhere"
    assert mounts["/mnt/cd"].read_only
    assert mounts["/net"].source == "server:/export"
    assert len(mounts) == 6


def test_blanks_in_mountpoints_are_unescaped() -> None:
    assert "/srv/two words" in [mount.mountpoint for mount in parse_mountinfo(MOUNTINFO)]


def test_swap_devices_and_files_are_listed() -> None:
    text = (
        "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
        "/dev/sda2                               partition\t999420\t\t0\t\t-2\n"
        "/swap\\040file                            file\t\t1048572\t\t0\t\t-3\n"
    )
    assert parse_swaps(text) == ["/dev/sda2", "/swap file"]
    assert parse_swaps("Filename Type Size Used Priority\n") == []


def test_this_machines_own_mounts_are_read() -> None:
    assert "/" in [mount.mountpoint for mount in read_mounts()]
    assert isinstance(read_swaps(), list)
