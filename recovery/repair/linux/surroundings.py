"""What else ties a Linux to its surroundings: its cloud, LVM's list of disks, SELinux's labels."""

from __future__ import annotations

import re
from collections.abc import Iterator

from recovery.repair.draft import Draft
from recovery.repair.record import Finding

_DATASOURCES = "/etc/cloud/cloud.cfg.d/99_understudy.cfg"
_ELSEWHERE = {"None", "NoCloud", "Ec2"}


def repair(draft: Draft) -> Iterator[Finding]:
    yield from _cloud_init(draft)
    yield from _lvm_devices(draft)


def _cloud_init(draft: Draft) -> Iterator[Finding]:
    """cloud-init that looks for one cloud only waits for it, minutes long, where there is another, or none."""
    if not draft.glob("/usr/bin/cloud-init") or draft.glob("/etc/cloud/cloud-init.disabled"):
        return
    found = ""
    for path in draft.glob("/etc/cloud/cloud.cfg", "/etc/cloud/cloud.cfg.d/*.cfg"):
        for listed in re.findall(r"^datasource_list:\s*\[([^\]]*)\]", draft.text(path), re.MULTILINE):
            found = listed
    sources = set(re.findall(r"\w+", found))
    if not sources or sources >= _ELSEWHERE:
        return
    text = (
        "# Made by Understudy's boot repair.\n"
        "datasource_list: [Ec2, NoCloud, None]\n"
        "preserve_hostname: true\n"
        "ssh_deletekeys: false\n"
    )
    draft.write(_DATASOURCES, text.encode(), "cloud-init waits for a cloud that is not there")
    yield Finding("warn", f"cloud-init looks for {', '.join(sorted(sources))} only", repaired=True)


def _lvm_devices(draft: Draft) -> Iterator[Finding]:
    path = "/etc/lvm/devices/system.devices"
    if re.search(r"^IDTYPE=(?!lvmlv_uuid)", draft.text(path), re.MULTILINE):
        draft.remove(path, "it names disks by their serial numbers; without it LVM looks at all disks")
        yield Finding("stop", f"{path} lets LVM use this machine's own disks only", repaired=True)


def label_new_files(draft: Draft) -> Iterator[Finding]:
    """The last to look: files that the draft adds have no SELinux label until the guest gives them one, at its boot."""
    enforcing = re.search(r"^SELINUX=enforcing\s*$", draft.text("/etc/selinux/config"), re.MULTILINE)
    added = [change.path for change in draft.changes() if change.before is None and not change.path.startswith("esp:")]
    if enforcing and added and draft.read("/.autorelabel") is None:
        draft.write("/.autorelabel", b"", f"SELinux labels for {', '.join(added)}")
        yield Finding("warn", "new files need SELinux labels: the first boot takes minutes longer", repaired=True)
