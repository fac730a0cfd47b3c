"""What all fuzzers share: limits on memory and time, and how libFuzzer is started.

A fuzzer is a program: `python -m tests.fuzz.fuzz_frames`. UNDERSTUDY_FUZZ_SECONDS says for how long (default: 10).
Other arguments go to libFuzzer, such as the file of an input that failed, to see it fail again.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

MEMORY_MIB = 1024
MOST_INPUT_BYTES = 1 << 16
ONE_INPUT_SECONDS = 120
CORPUS = Path(__file__).parent / "corpus"


def fuzz(name: str, one_input: Callable[[bytes], None]) -> None:
    """Feed `one_input` until the time is over, beginning with the seeds in corpus/`name`. Does not return.

    It must raise nothing. The process ends with another status than 0 when it did, took too long or too much memory;
    the input is then left in the current folder."""
    seconds = os.environ.get("UNDERSTUDY_FUZZ_SECONDS", "10")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_MIB << 20, MEMORY_MIB << 20))
    found = tempfile.mkdtemp(prefix=f"fuzz-{name}-", dir=os.environ.get("UNDERSTUDY_FUZZ_FOLDER"))
    limits = [
        f"-max_total_time={seconds}",
        f"-rss_limit_mb={MEMORY_MIB // 2}",
        f"-max_len={MOST_INPUT_BYTES}",
        f"-timeout={ONE_INPUT_SECONDS}",
        "-print_final_stats=1",
    ]
    again = any(Path(argument).is_file() for argument in sys.argv[1:])
    folders = [] if again else [found, str(CORPUS / name)]  # what is found goes to the first, and never into the seeds
    atheris.Setup([sys.argv[0], *limits, *folders, *sys.argv[1:]], one_input)
    atheris.Fuzz()
