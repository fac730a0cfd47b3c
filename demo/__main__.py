"""`make demo`: protect a server, burn its site down, carry on elsewhere, go home, and check every order.

It uses the product as a user would, by its two command lines, and the shop as its customers would, over HTTP. All it
makes is in .demo/, which it removes at its start, and the image's cache. Exit status 0 only if everything held.
"""

from __future__ import annotations

import fcntl
import shutil
import signal
import subprocess
import sys
import time
from typing import NoReturn

from demo import lab
from demo.building import BuildError
from demo.lab import DemoError
from demo.run import CACHE, FOLDER, Demo
from demo.show import Show

LOG_LINES = 25
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> int:
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "demo.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another demonstration is running in this checkout; wait until it has ended", file=sys.stderr)
            return 1
        return _run()


def _run() -> int:
    def interrupted(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    for number in SIGNALS:
        signal.signal(number, interrupted)
    lab.kill_processes_of(FOLDER)  # of a demonstration that was killed
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    show = Show()
    demo = Demo(show)
    try:
        demo.run()
    except KeyboardInterrupt:
        print("\ninterrupted; taking everything down", file=sys.stderr)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # once is enough
        demo.abandon()
        return 130
    except (DemoError, BuildError, OSError, subprocess.CalledProcessError) as error:
        print(f"\nFAILED at {show.step_title}\n{error}", file=sys.stderr)
        log = getattr(error, "log", None) or FOLDER / "service.log"
        if log.exists():
            print(f"\nthe last lines of {log}:", file=sys.stderr)
            for line in log.read_text(errors="replace").splitlines()[-LOG_LINES:]:
                print(f"  | {line}", file=sys.stderr)
        demo.abandon()
        print(f"\nEverything was taken down; logs are in {FOLDER}", file=sys.stderr)
        return 1
    except BaseException:
        demo.abandon()
        raise
    print(f"\nAll of it held, in {time.monotonic() - show.started_at:.0f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
