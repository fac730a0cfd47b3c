"""The content index: where in a tenant's replica volumes a block with a given digest was last seen.

    hints   tenant's number u32be, 16 bytes of the digest -> server's number u32, volume u16, block u64
    names   "tenant NAME" or "server ID" -> number u32; "live" -> entries after the last refill u64

Everything in it is a hint. Whoever uses one reads the block, and compares its whole digest. So entries may be wrong,
old or lost, and nothing is synced while the service runs; with LMDB's pages an entry takes about 64 bytes.

What no hint may do is crash the service, and LMDB trusts its file. A process that is killed leaves the file whole;
a machine that crashes may not. So a marker says in which boot the file is open, and which file: an index that was not
closed in order by this boot, or was put back from a copy, is thrown away, and filled again from the points.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import struct
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import lmdb

from agent.protocol.digests import DIGEST_BYTES, ZERO_DIGEST
from agent.protocol.errors import StorageError
from service.files import read_bytes, write_private

MAP_BYTES = 64 << 30
"""Of address space: room for a thousand million blocks. The file takes what its entries need."""
SPARE_ENTRIES = 4_000_000
"""This many more than twice what was live at the last refill, and most entries are of content that is gone."""
REST_SECONDS = 60.0
"""After a failed write, such as on a full disk, nothing is entered for so long."""
_KEY_DIGEST_BYTES = 16
_NUMBER = struct.Struct(">I")
_PLACE = struct.Struct("<IHQ")
_COUNT = struct.Struct("<Q")
_LIVE = b"live"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

_DAMAGE = (lmdb.Error, struct.error, UnicodeDecodeError)
"""What reading may raise where bits have flipped."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Place:
    """A block of a replica volume. `block` counts in that volume's own grid."""

    server_id: str
    volume: int
    block: int


class ContentIndex:
    """Calls may come from several threads. None raises: what fails is logged once, and means fewer hints."""

    def __init__(self, environment: lmdb.Environment, marker: Path) -> None:
        """Takes the environment over, also when it raises what a damaged file makes it raise."""
        self._environment = environment
        self._marker = marker
        self._writing = threading.Lock()
        self._resting_until: float | None = None
        self._closed = False
        try:
            self._names = environment.open_db(b"names")
            self._hints = environment.open_db(b"hints")
            with environment.begin(db=self._names) as transaction:
                found = {key: value for key, value in transaction.cursor() if key != _LIVE}
            self._numbers = {key.decode(): _NUMBER.unpack(value)[0] for key, value in found.items()}
        except _DAMAGE:
            environment.close()
            raise
        self._server_of = {number: name[7:] for name, number in self._numbers.items() if name.startswith("server ")}

    @classmethod
    def open(cls, folder: Path) -> Self | None:
        """The index in `folder`, made if need be. None, and a line in the log, if there can be none now."""
        marker = folder / "open"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if read_bytes(marker) not in (None, _mark(folder)):
                log.warning("the dedupe index may be damaged: it is filled again from the recovery points")
                _discard(folder)
            try:
                return cls(_environment(folder), marker)
            except _DAMAGE as error:
                log.warning("the dedupe index is made anew: %s", error)
                _discard(folder)
                return cls(_environment(folder), marker)
        except (OSError, lmdb.Error, StorageError) as error:
            log.warning("dedupe is off, there is no place for its index in %s: %s", folder, error)
            return None

    def close(self) -> None:
        """Make it last: the next open finds it as it is."""
        with (
            self._writing,
            contextlib.suppress(lmdb.Error, OSError),
        ):  # else the next open begins anew
            self._closed = True
            self._environment.sync(True)
            self._environment.close()
            self._marker.unlink(missing_ok=True)

    @property
    def entries(self) -> int:
        try:
            with self._environment.begin() as transaction:
                return int(transaction.stat(self._hints)["entries"])
        except _DAMAGE as error:
            self._rest(error)
            return 0

    @property
    def wants_refill(self) -> bool:
        """It is new, or a refill was cut off, or it is overgrown."""
        return self._resting_until is None and (self._live() is None or self._overgrown())

    def _live(self) -> int | None:
        """Entries after the last refill."""
        try:
            with self._environment.begin(db=self._names) as transaction:
                live = transaction.get(_LIVE)
            return None if live is None else int(_COUNT.unpack(live)[0])
        except _DAMAGE as error:
            self._rest(error)
            return None

    def _overgrown(self) -> bool:
        """Is most of it likely to be of content that is gone?"""
        return self.entries > 2 * (self._live() or 0) + SPARE_ENTRIES

    def knows(self, tenant: str) -> bool:
        """Is there any hint for the tenant?"""
        number = self._numbers.get(f"tenant {tenant}")
        if number is None:
            return False
        prefix = _NUMBER.pack(number)
        try:
            with self._environment.begin(db=self._hints) as transaction, transaction.cursor() as cursor:
                return bool(cursor.set_range(prefix)) and bytes(cursor.key()).startswith(prefix)
        except _DAMAGE as error:
            self._rest(error)
            return False

    def find(self, tenant: str, digests: Sequence[bytes]) -> list[Place | None]:
        """For each digest, where the tenant may have such a block."""
        number = self._numbers.get(f"tenant {tenant}")
        if number is None:
            return [None] * len(digests)
        prefix = _NUMBER.pack(number)
        try:
            with self._environment.begin(db=self._hints) as transaction:
                found = [transaction.get(prefix + digest[:_KEY_DIGEST_BYTES]) for digest in digests]
            return [self._place(value) if value is not None else None for value in found]
        except _DAMAGE as error:
            self._rest(error)
            return [None] * len(digests)

    def add(self, tenant: str, server_id: str, volume: int, indices: Iterable[int], digests: bytes) -> None:
        """The volume holds these blocks; `digests` has 32 bytes for each. What is known of elsewhere stays."""
        with self._write() as transaction:
            if transaction is None:
                return
            prefix = _NUMBER.pack(self._number(transaction, f"tenant {tenant}"))
            server = self._number(transaction, f"server {server_id}")
            items = [
                (prefix + digests[at : at + _KEY_DIGEST_BYTES], _PLACE.pack(server, volume, index))
                for at, index in zip(range(0, len(digests), DIGEST_BYTES), indices, strict=True)
                if digests[at : at + DIGEST_BYTES] != ZERO_DIGEST
            ]
            items.sort()
            with transaction.cursor(self._hints) as cursor:
                cursor.putmulti(items, overwrite=False)

    def drop(self, tenant: str, wrong: Iterable[tuple[bytes, Place]]) -> None:
        """Forget what was found to be wrong, unless it says something else by now."""
        with self._write() as transaction:
            if transaction is None:
                return
            prefix = _NUMBER.pack(self._number(transaction, f"tenant {tenant}"))
            for digest, place in wrong:
                key = prefix + digest[:_KEY_DIGEST_BYTES]
                value = transaction.get(key, db=self._hints)
                if value is not None and self._place(value) == place:
                    transaction.delete(key, db=self._hints)

    def begin_refill(self) -> None:
        """What is live is added again; if the index is overgrown it is emptied before."""
        overgrown = self._overgrown()
        with self._write() as transaction:
            if transaction is not None and overgrown:
                transaction.delete(_LIVE, db=self._names)
                transaction.drop(self._hints, delete=False)

    def end_refill(self) -> None:
        """All that is live has been added."""
        entries = self.entries
        with self._write() as transaction:
            if transaction is not None:
                transaction.put(_LIVE, _COUNT.pack(entries), db=self._names)

    @contextlib.contextmanager
    def _write(self) -> Iterator[lmdb.Transaction | None]:
        """A transaction, one at a time; None while resting. What fails is rolled back as a whole."""
        with self._writing:
            resting = self._resting_until
            if self._closed or (resting is not None and time.monotonic() < resting):
                yield None
                return
            numbers = dict(self._numbers)
            try:
                with self._environment.begin(write=True) as transaction:
                    yield transaction
            except _DAMAGE as error:
                self._numbers = numbers
                self._rest(error)
            else:
                if resting is not None:
                    self._resting_until = None
                    log.info("the dedupe index takes entries again")

    def _rest(self, error: Exception) -> None:
        if self._resting_until is None:
            log.warning("the dedupe index takes no more entries for now, pushes go on without: %s", error)
        self._resting_until = time.monotonic() + REST_SECONDS

    def _number(self, transaction: lmdb.Transaction, name: str) -> int:
        """The number that stands for a tenant or a server, given when it is first met."""
        number = self._numbers.get(name)
        if number is None:
            number = len(self._numbers)
            transaction.put(name.encode(), _NUMBER.pack(number), db=self._names)
            self._numbers[name] = number
            if name.startswith("server "):
                self._server_of[number] = name[7:]
        return number

    def _place(self, value: bytes | memoryview) -> Place | None:
        number, volume, block = _PLACE.unpack(value)
        server_id = self._server_of.get(number)
        return None if server_id is None else Place(server_id, volume, block)


def _environment(folder: Path) -> lmdb.Environment:
    """Open the file, and mark it as open before anything is written to it. Raises lmdb.Error, OSError."""
    # Not writemap: on a full disk, a write to the mapping would be a SIGBUS, and no error to be caught.
    environment = lmdb.open(
        str(folder), map_size=MAP_BYTES, max_dbs=2, mode=0o600, sync=False, metasync=False, readahead=False
    )
    try:
        _check_length(environment, folder / "data.mdb")
        write_private(folder / "open", _mark(folder))
    except BaseException:
        environment.close()
        raise
    return environment


def _check_length(environment: lmdb.Environment, file: Path) -> None:
    """What lies behind the file's end cannot be read without a SIGBUS."""
    used_bytes = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    if file.stat().st_size < used_bytes:
        raise lmdb.CorruptedError(f"{file} was cut short")


def _mark(folder: Path) -> bytes:
    """This boot of this machine, and this very file. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        found = (folder / "data.mdb").stat()
        return f"{_BOOT_ID.read_text().strip()} {found.st_dev}:{found.st_ino}".encode()
    return b""


def _discard(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir(mode=0o700)
