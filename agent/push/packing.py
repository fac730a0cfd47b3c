"""How hard to pack and how much to send at once, by what the line brings. Pure; the numbers come from outside."""

from __future__ import annotations

from agent.pieces import PIECE_BYTES

BATCH_SECONDS = 0.5
"""What a request takes, at most: a cut costs the requests under way, and they share the line. The last ones of a push
end at different times, by about as much, and meanwhile the line is not full."""
KEPT_SHARE = 4
"""A piece of which less than a quarter changed is not sent for itself: its changes wait until there are more."""
FIRST_BATCH_BYTES = 256 << 10
LEAST_BATCH_BYTES = 64 << 10
DEFAULT_LEVEL = 2
PATCH_LEVEL = 3
# bytes a second that the network takes in all -> zstd level. One thread packs about 620 MiB of disk a second at level 2
# and 420 at 3 (pieces of ../shared/workload); the levels above are a choice, for lines that leave processors idle.
_LEVELS = ((200e6, DEFAULT_LEVEL), (40e6, 3), (10e6, 5), (0.0, 7))


def level_for(network_rate: float | None) -> int:
    """The zstd level for a network that takes `network_rate` bytes a second; None: not known yet."""
    if network_rate is None:
        return DEFAULT_LEVEL
    return next(level for least, level in _LEVELS if network_rate >= least)


def batch_bytes_for(request_rate: float | None) -> int:
    """How much content to send in one request, where each brings `request_rate` packed bytes a second."""
    if request_rate is None:
        return FIRST_BATCH_BYTES
    return max(LEAST_BATCH_BYTES, min(int(request_rate * BATCH_SECONDS), PIECE_BYTES))
