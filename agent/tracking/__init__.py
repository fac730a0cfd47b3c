"""Which blocks of a disk change while a push runs: a BPF program marks each completed write in the kernel's memory.

No kernel module, no compiler, no dependency. `tracker.open_tracker` is the way in; whatever it is not sure of is a
value that says so (`Untracked`, `Taken.lost`), and the caller reads everything instead.
"""

from agent.tracking.tracker import ChangeTracker, Taken, Untracked, open_tracker

__all__ = ["ChangeTracker", "Taken", "Untracked", "open_tracker"]
