"""Builds the rescue image, or says that it is there already.

    python -m rescue [--out FILE] [--cache DIR] [--url URL]

A Debian tree is made with mmdebstrap (only unpacked: nothing of it runs here), what the rescue program needs is picked
from it into a boot archive, and GRUB and xorriso make a medium of that which boots by BIOS and UEFI, from a CD or a USB
stick. The tree is cached under a hash of what goes into it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from agent.protocol.errors import UsageError
from agent.rescue.address import url_of
from demo.building import REPOSITORY, BuildError
from rescue.image import build


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m rescue", description="Build the rescue image.")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "build/understudy-rescue.iso", metavar="FILE")
    parser.add_argument("--cache", type=Path, default=REPOSITORY / ".cache", metavar="DIR")
    parser.add_argument("--url", default="", metavar="URL", help="the service's address, so that nobody has to type it")
    options = parser.parse_args()
    try:
        url = url_of(options.url) if options.url else None
        build(options.out, options.cache, url, lambda line: print(line, file=sys.stderr, flush=True))
    except (BuildError, UsageError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{options.out}: {options.out.stat().st_size / (1 << 20):.0f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
