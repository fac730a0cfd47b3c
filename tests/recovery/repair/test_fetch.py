from __future__ import annotations

from pathlib import Path

import pytest

from agent.protocol.errors import ToolMissing
from recovery.repair.fetch import fetch

APT_CACHE = '#!/bin/sh\ncase $3 in linux*) echo "  Depends: linux-image-6";; esac\n'
APT_GET = "#!/bin/sh\nshift 2\nfor name; do echo $name >$name.deb; done\n"
DPKG_DEB = '#!/bin/sh\nset -e\nmkdir -p "$3"\ncat "$2" >>"$3/unpacked"\n'


@pytest.fixture
def debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Debian whose packages hold nothing but their names: the real ones come over a network."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, script in (("apt-cache", APT_CACHE), ("apt-get", APT_GET), ("dpkg-deb", DPKG_DEB)):
        (tools / name).write_text(script)
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)
    return tools


@pytest.mark.usefixtures("debian")
def test_the_folder_may_be_named_from_where_one_is(tmp_path: Path) -> None:
    fetch(Path("cache/worker"))
    assert "linux-image-6" in (tmp_path / "cache/worker/unpacked").read_text().split()
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["worker"]


def test_a_download_that_fails_leaves_nothing_and_says_why(debian: Path, tmp_path: Path) -> None:
    (debian / "apt-get").write_text("#!/bin/sh\necho 'E: no network' >&2\nexit 100\n")
    with pytest.raises(ToolMissing, match="apt-get download failed: E: no network"):
        fetch(tmp_path / "cache" / "worker")
    assert list((tmp_path / "cache").iterdir()) == []
