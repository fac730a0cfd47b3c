"""The state folder: what is lost when, and what is never half written."""

import os
import stat
import subprocess
from pathlib import Path

import pytest

from agent.protocol.errors import Conflict, UsageError
from agent.protocol.grid import BlockGrid
from agent.state import Identity, Position, State
from tests.faults.machine import mounted

GRID = BlockGrid(4 * 65536)
POSITION = Position(root="ab", size_bytes=GRID.size_bytes, block_bytes=GRID.block_bytes)


@pytest.fixture
def state(tmp_path: Path) -> State:
    made = State(tmp_path / "state")
    made.make()
    return made


def test_without_an_identity_it_says_how_to_get_one(state: State) -> None:
    with pytest.raises(UsageError, match="understudy-agent enroll"):
        state.identity()


def test_an_identity_is_kept_and_its_key_is_for_the_owner_only(state: State) -> None:
    identity = Identity(url="https://h:1", server_id="s", server_name="web01", ca_fingerprint="f")
    state.save_identity(identity, key_pem=b"key", certificate_pem=b"cert", ca_pem=b"ca")
    assert State(state.folder).identity() == identity
    assert stat.S_IMODE(state.key_path.stat().st_mode) == 0o600


def test_a_damaged_file_is_named(state: State) -> None:
    (state.folder / "protected.json").write_text("{not json")
    with pytest.raises(UsageError, match=r"protected\.json"):
        state.protected()


def test_only_one_push_at_a_time(state: State) -> None:
    with state.locked(), pytest.raises(Conflict, match="another push"), State(state.folder).locked():
        pass
    with state.locked():
        pass


def test_committed_digests_become_the_cache(state: State) -> None:
    fresh = state.new_digests("/dev/vda", GRID)
    fresh[1] = b"d" * 32
    assert state.position("/dev/vda") is None
    state.keep_digests("/dev/vda", fresh, POSITION)
    assert state.position("/dev/vda") == POSITION
    assert state.cached_digests("/dev/vda", GRID)[1] == b"d" * 32


def test_digests_of_a_push_that_was_cut_are_dropped(state: State) -> None:
    state.new_digests("/dev/vda", GRID)[1] = b"d" * 32
    assert state.new_digests("/dev/vda", GRID)[1] == bytes(32)


def test_forgetting_makes_the_cache_unknown(state: State) -> None:
    state.keep_digests("/dev/vda", state.new_digests("/dev/vda", GRID), POSITION)
    state.forget_digests("/dev/vda")
    assert state.position("/dev/vda") is None


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file"):
        State(tmp_path / "file" / "state").make()


def test_a_folder_named_relatively_serves_like_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    state = State(Path("here"))
    state.protect(["/dev/vda"])
    state.keep_digests("/dev/vda", state.new_digests("/dev/vda", GRID), POSITION)
    assert State(tmp_path / "here").position("/dev/vda") == POSITION


@pytest.mark.root
def test_a_disk_that_went_read_only_is_told_by_each_that_writes(tmp_path: Path) -> None:
    """As Linux does after an error of the disk that the state is on."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a filesystem")
    with mounted("tmpfs", tmp_path / "disk", "-t", "tmpfs", "-o", "size=4m") as folder:
        state = State(folder / "state")
        fresh = state.new_digests("/dev/vda", GRID)
        state.keep_digests("/dev/vda", fresh, POSITION)
        fresh.close()
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        with pytest.raises(UsageError, match=r"lock cannot be .*Read-only"), state.locked():
            pass
        with pytest.raises(UsageError, match="Read-only"):
            state.new_digests("/dev/vda", GRID)
        with pytest.raises(UsageError, match="Read-only"):
            state.forget_digests("/dev/vda")
