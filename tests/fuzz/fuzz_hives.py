"""Registry hives and their logs: whatever bytes come, they are read and drafted upon, or refused in one sentence."""

from __future__ import annotations

import struct

import atheris

with atheris.instrument_imports(include=["recovery.repair.windows"]):
    from agent.protocol.errors import RecoveryError
    from recovery.repair.target import Bus
    from recovery.repair.windows import bcd, drivers
    from recovery.repair.windows.bins import checksum
    from recovery.repair.windows.edit import difference
    from recovery.repair.windows.hive import Hive
    from recovery.repair.windows.hivedraft import HiveDraft
    from recovery.repair.windows.replay import marvin32, replay

from tests.fuzz.fuzzing import fuzz
from tests.recovery.repair.windows.making import PAGE, SECTOR, headed, log_header, small_hive

HIVE = small_hive()
UNFINISHED = headed(HIVE, 101, 100)
A_LOG, SEALED, TWO_LOGS = 1, 2, 4


def one_input(data: bytes) -> None:
    """The first byte says what the rest is, and whether checksums are made right, so that more than these is tried."""
    if not data:
        return
    kind, body = data[0], data[1:]
    try:
        if kind & A_LOG:
            half = len(body) // 2 if kind & TWO_LOGS else len(body)
            logs = [_log(part, sealed=bool(kind & SEALED)) for part in (body[:half], body[half:])]
            content = replay("SYSTEM", UNFINISHED, logs)
        else:
            content = _sealed(body) if kind & SEALED and len(body) >= PAGE else bytes(body)
        hive = Hive("SYSTEM", content)
        hive.check()
    except RecoveryError as error:
        assert "SYSTEM" in error.message
        assert error.hint
        return
    assert difference(hive, Hive("SYSTEM", content)) == {}
    draft = HiveDraft("/SYSTEM", hive)
    for bus in Bus:
        drivers.repair(draft, bus, lambda _: True)
    drivers.repair_data_disks(draft)
    list(bcd.repair(draft, None))


def _sealed(body: bytes) -> bytes:
    hive = bytearray(body)
    hive[:4] = b"regf"
    hive[8:12] = hive[4:8]
    struct.pack_into("<I", hive, 508, checksum(hive))
    return bytes(hive)


def _log(body: bytes, *, sealed: bool) -> bytes:
    """What comes behind the header of a log; `sealed`: one entry's, with right hashes."""
    if not sealed or len(body) < 8:
        return log_header(HIVE, 101, 6 if len(body) % 2 else 1) + body
    size = -(-(40 + len(body)) // SECTOR) * SECTOR
    bins_bytes, count = struct.unpack_from("<2I", body)
    entry = body[8:].ljust(size - 40, b"\0")
    head = struct.pack("<4s5IQ", b"HvLE", size, 0, 101, bins_bytes, count, marvin32(entry))
    return log_header(HIVE, 101, 6) + head + struct.pack("<Q", marvin32(head)) + entry


if __name__ == "__main__":
    fuzz("hives", one_input)
