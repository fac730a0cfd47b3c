"""The parsers under a fuzzer: for two seconds each in every run, for an hour in all in `make test-long`."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FUZZERS = sorted(path.stem for path in Path(__file__).parent.glob("fuzz_*.py"))
LONG_SECONDS = int(os.environ.get("UNDERSTUDY_FUZZ_SECONDS", 3600 // len(FUZZERS)))
needs_atheris = pytest.mark.skipif(find_spec("atheris") is None, reason="atheris is missing: pip install '.[fuzz]'")


def run(fuzzer: str, seconds: int, folder: Path) -> subprocess.CompletedProcess[str]:
    # Through a shell of its own: Linux counts a large parent's memory as a new program's greatest, and that is what
    # libFuzzer's limit is about.
    apart = ["/bin/sh", "-c", '"$@"; exit $?', "sh"]
    return subprocess.run(
        [*apart, sys.executable, "-m", f"tests.fuzz.{fuzzer}", f"-artifact_prefix={folder}/"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "UNDERSTUDY_FUZZ_SECONDS": str(seconds), "UNDERSTUDY_FUZZ_FOLDER": str(folder)},
    )


@needs_atheris
@pytest.mark.parametrize("fuzzer", FUZZERS)
def test_no_input_makes_a_parser_fail(fuzzer: str, tmp_path: Path) -> None:
    check(run(fuzzer, 2, tmp_path), tmp_path)


@needs_atheris
@pytest.mark.long
@pytest.mark.timeout(LONG_SECONDS + 300)
@pytest.mark.parametrize("fuzzer", FUZZERS)
def test_no_input_of_very_many_makes_a_parser_fail(fuzzer: str, tmp_path: Path) -> None:
    check(run(fuzzer, LONG_SECONDS, tmp_path), tmp_path)


def check(ran: subprocess.CompletedProcess[str], folder: Path) -> None:
    failed = [path.read_bytes() for path in folder.iterdir() if path.is_file()]
    assert ran.returncode == 0, f"{failed}\n{ran.stdout[-2000:]}\n{ran.stderr[-6000:]}"
