"""Freezing real filesystems on loop devices, and every way in which a freeze could be left behind.

What a frozen filesystem lets through is never timed: a write either waits for the thaw or the test hangs and fails.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from agent.consistency.freeze import Freeze, thaw_all
from agent.protocol.errors import FreezeError
from agent.volumes.source import SourceVolume, aligned_buffer
from agent.volumes.topology import MountedFilesystem, mounted_filesystems
from tests.agent.volumes.disks import MIB, Lab, Writer, needs_root, run

pytestmark = needs_root
LONG_SECONDS = 600.0  # a limit that plays no part in a test

CAP_SYS_RESOURCE = 1 << 24
REPOSITORY = Path(__file__).parents[3]


def digest(device: str) -> str:
    with SourceVolume.open(device) as source:
        buffer = aligned_buffer(source.size_bytes)
        source.read_into(buffer, 0)
        return hashlib.sha256(buffer).hexdigest()


def child_of(freeze: Freeze) -> int:
    assert freeze._child is not None
    return freeze._child.pid


def status_of(process: int) -> dict[str, str]:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def locked_kib(process: int) -> int:
    return int(status_of(process)["VmLck"].split()[0])


def is_frozen(where: Path) -> bool:
    """Asks in the only way there is, by thawing."""
    return thaw_all([str(where)]) == [str(where)]


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_a_frozen_filesystem_holds_writers_up_and_its_disk_still_until_the_thaw(lab: Lab, kind: str) -> None:
    _, device, where = lab.filesystem(kind)
    with Freeze(mounted_filesystems(device), LONG_SECONDS) as freeze:
        freeze.prepare()
        freeze.freeze()
        try:
            before = digest(device)
            writer = Writer(where)
            held_up = writer.held_up()
            still = digest(device) == before
        finally:
            thawed = freeze.thaw()
        assert held_up
        assert still
        assert thawed.held
        assert thawed.seconds > 0
        assert freeze.unfrozen == []
        assert writer.done()


def test_what_is_read_under_freeze_is_a_clean_filesystem_with_all_that_was_written_before(lab: Lab) -> None:
    _, device, where = lab.filesystem("ext4")
    for number in range(200):
        (where / f"file{number}").write_bytes(os.urandom(number * 50))
    expected = {path.name: path.read_bytes() for path in where.glob("file*")}
    replica = lab.image(16 * MIB, "replica.img")
    buffer = aligned_buffer(16 * MIB)
    with SourceVolume.open(device) as source, Freeze(mounted_filesystems(device), LONG_SECONDS) as freeze:
        freeze.freeze()
        try:
            source.read_into(buffer, 0)
        finally:
            assert freeze.thaw().held
    replica.write_bytes(buffer)
    run("e2fsck", "-fn", replica)
    copy = lab.mount(lab.attach(replica, "--read-only"), "copy", "-o", "ro")
    assert {path.name: path.read_bytes() for path in copy.glob("file*")} == expected


def test_a_freeze_can_be_done_again_and_again(lab: Lab) -> None:
    _, device, where = lab.filesystem("ext4")
    with Freeze(mounted_filesystems(device), LONG_SECONDS) as freeze:
        for number in range(3):
            freeze.prepare()
            freeze.freeze()
            assert freeze.thaw().held
            assert Writer(where, f"file{number}").done()


def test_killing_the_agent_while_frozen_thaws(lab: Lab) -> None:
    _, device, where = lab.filesystem("ext4")
    script = textwrap.dedent(
        f"""
        import time
        from agent.consistency.freeze import Freeze, lock_memory
        from agent.volumes.topology import mounted_filesystems
        freeze = Freeze(mounted_filesystems({device!r}), {LONG_SECONDS})
        freeze.prepare()
        lock_memory()
        freeze.freeze()
        print("frozen", flush=True)
        time.sleep({LONG_SECONDS})
        """
    )
    agent = subprocess.Popen([sys.executable, "-B", "-c", script], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    try:
        assert agent.stdout is not None
        assert agent.stdout.readline() == "frozen\n"
        writer = Writer(where)
        assert writer.held_up()
    finally:
        agent.kill()
        agent.wait()
        assert agent.stdout is not None
        agent.stdout.close()
    assert writer.done()


def test_killing_the_freezer_while_frozen_leaves_the_thaw_to_the_agent(lab: Lab) -> None:
    _, device, where = lab.filesystem("ext4")
    with Freeze(mounted_filesystems(device), LONG_SECONDS) as freeze:
        freeze.freeze()
        os.kill(child_of(freeze), signal.SIGKILL)
        writer = Writer(where)
        held_up = writer.held_up()
        thawed = freeze.thaw()
        assert held_up
        assert thawed.held, "it was frozen all the time"
        assert writer.done()


def test_a_freezer_killed_after_somebody_thawed_is_not_a_held_freeze(lab: Lab) -> None:
    _, device, where = lab.filesystem("ext4")
    with Freeze(mounted_filesystems(device), LONG_SECONDS) as freeze:
        freeze.freeze()
        os.kill(child_of(freeze), signal.SIGKILL)
        run("fsfreeze", "--unfreeze", where)
        assert not freeze.thaw().held


def test_a_freezer_killed_before_the_freeze_leaves_nothing_frozen(lab: Lab) -> None:
    _, device, where = lab.filesystem("ext4")
    with Freeze(mounted_filesystems(device), LONG_SECONDS) as freeze:
        freeze.prepare()
        os.kill(child_of(freeze), signal.SIGKILL)
        with pytest.raises(FreezeError, match="ended or does not answer"):
            freeze.freeze()
        assert Writer(where).done()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_freezer_thaws_and_is_told(lab: Lab, number: signal.Signals) -> None:
    _, device, where = lab.filesystem("ext4")
    with Freeze(mounted_filesystems(device), LONG_SECONDS) as freeze:
        freeze.freeze()
        os.kill(child_of(freeze), number)
        assert Writer(where).done()
        assert not freeze.thaw().held


def test_when_the_limit_is_over_all_is_thawed_and_the_freeze_did_not_hold(lab: Lab) -> None:
    _, device, where = lab.filesystem("ext4")
    with Freeze(mounted_filesystems(device), limit_seconds=3.0) as freeze:
        with contextlib.suppress(FreezeError):  # a machine that stood still comes to the limit before it is frozen
            freeze.freeze()
        assert Writer(where).done()  # waits for the limit, since nobody else thaws
        assert not freeze.thaw().held


def test_an_early_thaw_by_somebody_else_is_told(lab: Lab) -> None:
    _, device, where = lab.filesystem("ext4")
    with Freeze(mounted_filesystems(device), LONG_SECONDS) as freeze:
        freeze.freeze()
        run("fsfreeze", "--unfreeze", where)
        assert not freeze.thaw().held


def test_closing_thaws(lab: Lab) -> None:
    _, device, where = lab.filesystem("ext4")
    freeze = Freeze(mounted_filesystems(device), LONG_SECONDS)
    freeze.freeze()
    freeze.close()
    freeze.close()
    assert not is_frozen(where)
    assert not freeze.thaw().held


def test_a_filesystem_frozen_by_somebody_else_is_an_error_and_stays_theirs(lab: Lab) -> None:
    _, ours, here = lab.filesystem("ext4", "ours")
    _, theirs, there = lab.filesystem("ext4", "theirs")
    run("fsfreeze", "--freeze", there)
    with Freeze([*mounted_filesystems(ours), *mounted_filesystems(theirs)], LONG_SECONDS) as freeze:
        freeze.prepare()
        with pytest.raises(FreezeError, match=f"{there} is frozen already"):
            freeze.freeze()
    assert Writer(here).done()
    assert is_frozen(there)


def test_what_cannot_be_frozen_is_named_and_the_rest_is_frozen(lab: Lab) -> None:
    _, device, where = lab.filesystem("ext4")
    memory = lab.mount("tmpfs", "memory", "-t", "tmpfs")
    read_only = lab.mount("tmpfs", "memory-ro", "-t", "tmpfs", "-o", "ro")
    filesystems = [
        MountedFilesystem("tmpfs", str(memory), "tmpfs", read_only=False),
        MountedFilesystem("tmpfs", str(read_only), "tmpfs", read_only=True),
        *mounted_filesystems(device),
    ]
    with Freeze(filesystems, LONG_SECONDS) as freeze:
        freeze.freeze()
        writer = Writer(where)
        held_up = writer.held_up()
        assert freeze.thaw().held
        assert held_up
        assert freeze.unfrozen == filesystems[:1], "what nobody can write to does not matter"
        assert writer.done()


def test_a_filesystem_that_is_mounted_read_only_takes_part(lab: Lab) -> None:
    _, device, where = lab.filesystem("ext4")
    run("mount", "-o", "remount,ro", where)
    with Freeze(mounted_filesystems(device), LONG_SECONDS) as freeze:
        freeze.freeze()
        assert freeze.thaw().held
        assert freeze.unfrozen == []


def test_a_filesystem_hidden_under_another_mount_is_named_and_the_other_is_left_alone(lab: Lab) -> None:
    _, hidden, where = lab.filesystem("ext4", "hidden")
    _, cover, _ = lab.filesystem("ext4", "cover")
    lab.mount(cover, "hidden")
    found = mounted_filesystems(hidden)
    with Freeze(found, LONG_SECONDS) as freeze:
        freeze.freeze()
        assert Writer(where).done()
        assert freeze.thaw().held
        assert freeze.unfrozen == found


def test_an_image_on_a_frozen_disk_is_frozen_before_it(lab: Lab) -> None:
    outer, _, outside = lab.filesystem("xfs", "outer")
    inner, _, inside = lab.filesystem("ext4", "inner", folder=outside)
    with Freeze(mounted_filesystems(str(outer), str(inner)), LONG_SECONDS) as freeze:
        (inside / "dirty").write_bytes(os.urandom(MIB))
        freeze.freeze()
        assert freeze.thaw().held
    assert Writer(inside).done()


def test_a_freeze_that_waits_for_what_is_frozen_already_ends_with_the_limit(lab: Lab) -> None:
    _, outer, outside = lab.filesystem("xfs", "outer")
    _, inner, inside = lab.filesystem("ext4", "inner", folder=outside)
    wrong_order = [*mounted_filesystems(outer), *mounted_filesystems(inner)]
    with Freeze(wrong_order, limit_seconds=1.0) as freeze:
        freeze.prepare()
        (inside / "dirty").write_bytes(os.urandom(MIB))  # has to be written to the frozen disk first
        with pytest.raises(FreezeError, match="limit"):
            freeze.freeze()
    assert Writer(inside).done()
    assert Writer(outside).done()


def test_a_mountpoint_that_is_gone_is_an_error_in_words(tmp_path: Path) -> None:
    gone = MountedFilesystem("/dev/none", str(tmp_path / "gone"), "ext4", read_only=False)
    with Freeze([gone]) as freeze, pytest.raises(FreezeError, match="gone cannot be opened: No such file"):
        freeze.prepare()


def test_who_may_not_freeze_is_told_to_be_root(lab: Lab) -> None:
    _, device, where = lab.filesystem("ext4")
    code = textwrap.dedent(
        f"""
        from agent.consistency.freeze import Freeze
        from agent.protocol.errors import FreezeError
        from agent.volumes.topology import mounted_filesystems
        with Freeze(mounted_filesystems({device!r})) as freeze:
            freeze.prepare()
            try:
                freeze.freeze()
            except FreezeError as error:
                print(error)
        """
    )
    said = run("setpriv", "--bounding-set=-sys_admin", "env", f"PYTHONPATH={REPOSITORY}", sys.executable, "-Bc", code)
    assert said == f"{where} cannot be frozen: Operation not permitted (run as root)"


def test_memory_that_may_not_be_locked_is_an_error_that_says_to_be_root() -> None:
    code = textwrap.dedent(
        """
        from agent.consistency.freeze import lock_memory
        from agent.protocol.errors import FreezeError
        try:
            lock_memory()
        except FreezeError as error:
            print(error.hint)
        """
    )
    limits = ["prlimit", "--memlock=0:0", "setpriv", "--bounding-set=-ipc_lock", "env", f"PYTHONPATH={REPOSITORY}"]
    assert run(*limits, sys.executable, "-Bc", code) == "run as root"


def test_thawing_all_says_what_was_frozen_and_passes_over_the_rest(lab: Lab) -> None:
    _, _, one = lab.filesystem("ext4", "one")
    _, _, two = lab.filesystem("ext4", "two")
    run("fsfreeze", "--freeze", one)
    assert thaw_all([str(one), str(two), "/nowhere"]) == [str(one)]
    assert Writer(one).done()


def test_a_closed_freeze_leaves_no_process_and_no_descriptor(lab: Lab) -> None:
    _, device, _ = lab.filesystem("ext4")
    gc.collect()  # what earlier tests left to it is not to be closed meanwhile
    before = len(os.listdir("/proc/self/fd"))
    freeze = Freeze(mounted_filesystems(device), LONG_SECONDS)
    freeze.freeze()
    child = child_of(freeze)
    freeze.thaw()
    freeze.close()
    assert len(os.listdir("/proc/self/fd")) == before
    assert not Path(f"/proc/{child}").exists()


def test_the_freezer_stays_in_memory_and_in_a_session_of_its_own(lab: Lab) -> None:
    _, device, _ = lab.filesystem("ext4")
    with Freeze(mounted_filesystems(device), LONG_SECONDS) as freeze:
        freeze.prepare()
        assert locked_kib(child_of(freeze)) > 0
        assert os.getsid(child_of(freeze)) == child_of(freeze)


def test_the_freezer_is_the_last_to_be_killed_for_want_of_memory(lab: Lab) -> None:
    if not int(status_of(os.getpid())["CapEff"], 16) & CAP_SYS_RESOURCE:
        pytest.skip("saying so needs CAP_SYS_RESOURCE, which root does not have here")
    _, device, _ = lab.filesystem("ext4")
    with Freeze(mounted_filesystems(device), LONG_SECONDS) as freeze:
        freeze.prepare()
        assert Path(f"/proc/{child_of(freeze)}/oom_score_adj").read_text() == "-1000\n"


@pytest.mark.long
def test_freezing_under_a_storm_of_writes_never_loses_what_was_written_before(lab: Lab) -> None:
    _, device, where = lab.filesystem("xfs")
    storm = subprocess.Popen(
        ["sh", "-c", f"while :; do dd if=/dev/urandom of={where}/storm bs=64k count=200 conv=fsync 2>/dev/null; done"],
        start_new_session=True,
    )
    try:
        with Freeze(mounted_filesystems(device), LONG_SECONDS) as freeze:
            for number in range(10):
                (where / f"before{number}").write_bytes(os.urandom(4096))
                freeze.prepare()
                freeze.freeze()
                try:
                    before = digest(device)
                    time.sleep(0.1)
                    still = digest(device) == before
                finally:
                    thawed = freeze.thaw()
                assert still
                assert thawed.held
    finally:
        os.killpg(storm.pid, signal.SIGKILL)
        storm.wait()
