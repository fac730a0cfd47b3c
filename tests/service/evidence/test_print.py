"""The evidence as auditors get it: printed. A drill of one server is one page, on A4 and on Letter's width."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import pytest

from recovery.repair.record import FileChange, Finding, RepairRecord
from recovery.runs import Run, StepState
from tests.patience import PATIENCE_SECONDS
from tests.service.evidence.test_evidence import Office, drill

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def screen(width: int = 1280, height: int = 800) -> bytes:
    """A picture as large as a guest's screen."""
    rows = b"".join(b"\0" + bytes((x ^ y) & 255 for x in range(width)) for y in range(height))
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), (b"IDAT", zlib.compress(rows))]
    chunks = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in [*parts, (b"IEND", b"")]
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def large_drill(office: Office) -> Run:
    """As much as there may be of one server: a full console, a repair, filesystems on several disks, a failed gate."""
    office.repair = RepairRecord(
        system="Debian GNU/Linux 12 (bookworm)",
        target="virtio, BIOS",
        findings=(Finding("stop", "the initramfs lacks virtio_blk", repaired=True),),
        changes=tuple(
            FileChange(path=path, before=b"a", after=b"b")
            for path in ("/boot/initrd.img-6.1.0-50-amd64", "/etc/fstab", "/etc/netplan/01-site.yaml")
        ),
    )
    error = "web01: HTTP 200 from port 8000 /health did not come within 300 s; last seen: connection refused\n"
    run = drill(gate=StepState.FAILED)
    gate, picture, filesystems = (next(step for step in run.steps if step.action == action)
                                  for action in ("gate", "picture", "filesystems"))  # fmt: skip
    console = [f"[{number:5}.123456] " + "systemd[1]: Started a service with a long name. " * 4 for number in range(20)]
    gate.error = error + "its console ends with:\n" + "\n".join(console)
    picture.result = {"console": console, **office.keeper.keep_picture(run.id, "srv-1", screen())}
    filesystems.result = {
        "note": "3 sound; unknown: xfs on volume 1, partition 3 (xfs_repair is not installed here)",
        "filesystems": [{"where": f"volume {number}", "kind": "ext4"} for number in range(3)],
    }
    return run


def printed(page: Path, work: Path) -> int:
    """Pages of paper."""
    out = work / "page.pdf"
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-pdf-header-footer"]
    command += [f"--user-data-dir={work}/profile", f"--print-to-pdf={out}", page.as_uri()]
    environment = {**os.environ, "HOME": str(work)}
    subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE_SECONDS, env=environment)
    return len(re.findall(rb"/Type\s*/Page\b(?!s)", out.read_bytes()))


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_a_drill_of_one_server_is_printed_on_one_page(tmp_path: Path, large: bool) -> None:
    office = Office(tmp_path / "drills")
    run = large_drill(office) if large else drill()
    office.keeper.testify(run)
    assert printed(tmp_path / "drills" / run.id / f"{run.id}.html", tmp_path) == 1
