"""What a pull overwrites, in words, for whoever is asked to confirm it."""

from __future__ import annotations

from pathlib import Path

from agent.inventory import disks
from agent.rescue.contents import contents, disks_of, read_head


def lost_on(path: str) -> str:
    """What is there now, as far as the first bytes of it, and of its partitions, tell."""
    real = Path(path).resolve()
    if not real.exists():
        return f"nothing is lost, there is no {path} yet"
    of_disk = next((disk.holds for disk in disks_of(disks(), read_head) if disk.name == str(real)), None)
    return f"all that is on {path} is lost ({of_disk or contents(read_head(str(real)), [])})"
