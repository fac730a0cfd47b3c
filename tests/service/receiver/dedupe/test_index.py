"""The content index: what it remembers, for whom, and that nothing which happens to its file does harm."""

from __future__ import annotations

import logging
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.protocol.digests import ZERO_DIGEST
from service.receiver.dedupe import index as index_module
from service.receiver.dedupe.index import ContentIndex, Place
from tests.faults.machine import Ballast, mounted

ONE, TWO, THREE = (random.Random(seed).randbytes(32) for seed in range(3))


def opened(folder: Path) -> ContentIndex:
    index = ContentIndex.open(folder)
    assert index is not None
    return index


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "dedupe"


@pytest.fixture
def index(folder: Path) -> Iterator[ContentIndex]:
    made = opened(folder)
    yield made
    made.close()


def killed_with(folder: Path, *digests: bytes) -> None:
    """A process enters the digests as blocks 0, 1... of volume 0 of srv-a, and is killed."""
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from service.receiver.dedupe.index import ContentIndex\n"
        "digests = bytes.fromhex(sys.argv[2])\n"
        "index = ContentIndex.open(Path(sys.argv[1]))\n"
        "index.add('default', 'srv-a', 0, range(len(digests) // 32), digests)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", code, folder, b"".join(digests).hex()], check=False)


def test_it_says_where_a_block_was_written(index: ContentIndex) -> None:
    index.add("default", "srv-a", 3, [7, 9], ONE + TWO)
    assert index.find("default", [ONE, THREE, TWO]) == [Place("srv-a", 3, 7), None, Place("srv-a", 3, 9)]


def test_it_says_nothing_to_another_tenant(index: ContentIndex) -> None:
    index.add("one", "srv-a", 0, [7], ONE)
    index.add("two", "srv-b", 0, [1], TWO)
    assert index.find("two", [ONE, TWO]) == [None, Place("srv-b", 0, 1)]
    assert index.find("three", [ONE, TWO]) == [None, None]


def test_what_is_known_stays_and_zeros_are_not_entered(index: ContentIndex) -> None:
    index.add("default", "srv-a", 0, [1, 2], ONE + ZERO_DIGEST)
    index.add("default", "srv-b", 0, [5, 6], ONE + TWO)
    assert index.find("default", [ONE, TWO]) == [Place("srv-a", 0, 1), Place("srv-b", 0, 6)]
    assert index.entries == 2


def test_only_what_it_still_says_is_dropped(index: ContentIndex) -> None:
    index.add("default", "srv-a", 0, [1, 2], ONE + TWO)
    index.drop("default", [(ONE, Place("srv-a", 0, 1)), (TWO, Place("srv-a", 0, 99))])
    assert index.find("default", [ONE, TWO]) == [None, Place("srv-a", 0, 2)]


def test_it_is_found_again_after_it_was_closed(folder: Path) -> None:
    index = opened(folder)
    index.add("default", "srv-a", 0, [1], ONE)
    index.close()
    index = opened(folder)
    index.add("default", "srv-b", 0, [2], TWO)
    assert index.find("default", [ONE, TWO]) == [Place("srv-a", 0, 1), Place("srv-b", 0, 2)]
    index.close()


def test_a_process_that_is_killed_leaves_it_whole(folder: Path) -> None:
    killed_with(folder, ONE, TWO)
    index = opened(folder)
    assert index.find("default", [ONE, TWO]) == [Place("srv-a", 0, 0), Place("srv-a", 0, 1)]
    index.close()


def test_after_a_crash_of_the_machine_it_is_begun_anew(folder: Path) -> None:
    killed_with(folder, ONE)
    (folder / "open").write_text((folder / "open").read_text().replace("-", "0"))  # of another boot
    index = opened(folder)
    assert (index.find("default", [ONE]), index.wants_refill) == ([None], True)
    index.close()


def test_a_copy_made_while_it_was_open_is_not_trusted(folder: Path, tmp_path: Path) -> None:
    killed_with(folder, ONE)
    shutil.copytree(folder, tmp_path / "copy")
    index = opened(tmp_path / "copy")
    assert index.find("default", [ONE]) == [None]
    index.close()


@pytest.mark.parametrize("harm", ["cut short", "empty", "no index at all", "missing"])
def test_a_damaged_file_is_made_anew(folder: Path, harm: str) -> None:
    index = opened(folder)
    digests = random.Random(1).randbytes(32 * 5000)
    index.add("default", "srv-a", 0, range(5000), digests)
    index.close()
    file = folder / "data.mdb"
    if harm == "cut short":
        os.truncate(file, file.stat().st_size // 2)
    elif harm == "empty":
        os.truncate(file, 0)
    elif harm == "no index at all":
        file.write_bytes(random.Random(2).randbytes(100_000))
    else:
        file.unlink()
    index = opened(folder)
    assert index.find("default", [digests[:32]]) == [None]
    index.add("default", "srv-a", 0, [0], ONE)
    assert index.find("default", [ONE]) == [Place("srv-a", 0, 0)]
    index.close()


def test_where_there_is_no_place_for_it_the_service_does_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "dedupe").write_text("a file where the folder should be")
    assert ContentIndex.open(tmp_path / "dedupe") is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="a filesystem of its own needs root")
def test_on_a_full_disk_it_takes_no_more_says_so_once_and_begins_again_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    rng = random.Random(1)
    with mounted("tmpfs", tmp_path / "disk", "-t", "tmpfs", "-o", "size=8m") as disk:
        index = opened(disk / "dedupe")
        index.add("default", "srv-a", 0, [1], ONE)
        ballast = Ballast(disk)
        ballast.fill()
        for at in range(20):
            index.add("default", "srv-b", 0, range(1000), rng.randbytes(32_000))
            if at == 10:
                monkeypatch.setattr(index_module, "REST_SECONDS", 0.0)
        assert index.find("default", [ONE]) == [Place("srv-a", 0, 1)]
        assert len(caplog.records) == 1 and "No space left" in caplog.text
        ballast.empty()
        index._resting_until = 0.0
        index.add("default", "srv-c", 0, [2], TWO)
        assert index.find("default", [ONE, TWO]) == [Place("srv-a", 0, 1), Place("srv-c", 0, 2)]
        assert len(caplog.records) == 2 and "takes entries again" in caplog.text
        index.close()


def test_a_block_costs_about_64_bytes(folder: Path, index: ContentIndex) -> None:
    rng = random.Random(1)
    for _ in range(400):
        index.add("default", "srv-a", 0, range(128), rng.randbytes(32 * 128))
    assert index.entries == 51_200
    assert (folder / "data.mdb").stat().st_size / 51_200 < 100


def test_a_new_one_wants_to_be_filled_and_keeps_what_it_learns_meanwhile(index: ContentIndex) -> None:
    assert index.wants_refill
    index.add("default", "srv-a", 0, [1], ONE)
    index.begin_refill()
    assert index.wants_refill, "a refill that was cut off is wanted again"
    index.end_refill()
    assert (index.wants_refill, index.find("default", [ONE])) == (False, [Place("srv-a", 0, 1)])


def test_when_most_of_it_is_old_it_is_emptied_and_filled_again(
    index: ContentIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "SPARE_ENTRIES", 10)
    rng = random.Random(1)
    index.add("default", "srv-a", 0, range(20), rng.randbytes(32 * 20))
    index.end_refill()
    index.add("default", "srv-a", 0, range(30), rng.randbytes(32 * 30))
    assert not index.wants_refill
    index.add("default", "srv-a", 0, range(1), rng.randbytes(32))
    assert index.wants_refill
    index.begin_refill()
    assert (index.entries, index.wants_refill) == (0, True)


@pytest.mark.parametrize("name", [b"server srv-a", b"tenant default", b"live"])
def test_an_index_whose_numbers_have_rotted_is_made_anew_or_says_less(folder: Path, name: bytes) -> None:
    """The length of what is kept beside a name changes by one."""
    made = opened(folder)
    made.add("default", "srv-a", 0, [1, 2], ONE + TWO)
    made.end_refill()
    made.close()
    file = folder / "data.mdb"
    content = bytearray(file.read_bytes())
    at = content.find(name)
    while at >= 0:
        content[at - 8] ^= 1  # LMDB's node begins with the length of its value
        at = content.find(name, at + 1)
    file.write_bytes(content)
    again = opened(folder)
    assert again.find("default", [ONE, TWO]) in ([None, None], [Place("srv-a", 0, 1), Place("srv-a", 0, 2)])
    assert again.entries in (0, 2)
    again.wants_refill  # noqa: B018  # does not raise
    again.knows("default")
    again.close()
