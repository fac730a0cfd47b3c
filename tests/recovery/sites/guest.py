"""A guest of one sector that boots in about a second; its source is guest.S beside this file."""

from __future__ import annotations

BOOT_SECTOR = (
    bytes.fromhex(
        "31c08ed88ec08ed0bc007c88166c7cbe517ce83000b800438a166c7cbe707ccd13721fbe627ce81c00ba0206b80001effbf4"
        "ba0006eda9000174f5ba0406b80020eff4ebfdac84c07406baf803eeebf5c31b5b316d6c6f67696e3a1b5b306d0d0a007772"
        "697474656e0d0a00008d740010000100007c000080"
    ).ljust(510, b"\0")
    + b"\x55\xaa"
)
WRITES_AT = 128 * 512
"""Where on its disk the guest writes a copy of its first sector."""
