"""`understudy seed import FILE`: reads a seed file front to back, and hands its frames to the service."""

from __future__ import annotations

import argparse
import collections
import contextlib
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from agent.protocol.errors import UnderstudyError, UsageError
from agent.protocol.frames import MAX_BLOCKS, encode_zeros
from agent.protocol.messages import to_json
from agent.protocol.seedfile import SeedReader, SeedRecord
from service.cli.client import Connection, Service
from service.cli.output import emit, show_share
from service.cli.text import size

UPLOADS = 3


def seed_import(options: argparse.Namespace) -> None:
    """The file is checked as it is read; the service proves each block, and at the end the whole."""
    path, service = Path(options.file), Service.of(options)
    try:
        with open(path, "rb", 1 << 20) as file:
            reader = SeedReader(file)
            begun = service.post("/api/v1/seeds", to_json(reader.header))
            base = f"/api/v1/seeds/{reader.header.server_id}/{begun['session']}"
            try:
                blocks = _take_in(options, service, base, reader, path.stat().st_size)
                assert reader.trailer is not None
                service.post(f"{base}/finish", {"roots": reader.trailer.roots})
            except BaseException:
                with contextlib.suppress(UnderstudyError):  # what went wrong before counts
                    service.post(f"{base}/abandon")
                raise
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", "name the file that `seed` wrote") from None
    document = {
        "server": begun["server"],
        "server_id": reader.header.server_id,
        "made_at": reader.header.made_at,
        "blocks": blocks,
        "file_bytes": reader.read_bytes,
        "roots": reader.trailer.roots,
    }
    text = f"{begun['server']}: {size(reader.read_bytes)} taken in, every block proven\nits next push sends the rest"
    emit(options, document, text)


def _take_in(options: argparse.Namespace, service: Service, base: str, reader: SeedReader, file_bytes: int) -> int:
    """Send everything that the file says of every volume; returns the number of blocks with data."""
    blocks = 0
    with _Uploads(service) as uploads:
        volumes = [_Volume(uploads, f"{base}/volumes/{index}") for index in range(len(reader.grids))]
        for record in reader.records():
            volumes[record.volume].take_in(record)
            blocks += len(record.frame.indices)
            show_share(options, f"import {reader.header.server_name}", reader.read_bytes, file_bytes)
        for volume, grid in zip(volumes, reader.grids, strict=True):
            volume.zeros_until(grid.count)
            volume.send_zeros()
        uploads.wait()
    show_share(options, "", 1, 1)
    return blocks


class _Volume:
    """One volume's frames; what lies between them is zero, whatever a push that was cut may have brought there."""

    def __init__(self, uploads: _Uploads, path: str) -> None:
        self._uploads = uploads
        self._path = path
        self._done_to = 0
        self._zeros: list[int] = []

    def take_in(self, record: SeedRecord) -> None:
        self.zeros_until(record.frame.indices[-1] + 1, frozenset(record.frame.indices))
        self._uploads.begin(f"{self._path}/blocks", record.body)

    def zeros_until(self, stop: int, but: frozenset[int] = frozenset()) -> None:
        for index in range(self._done_to, stop):
            if index not in but:
                self._zeros.append(index)
                if len(self._zeros) == MAX_BLOCKS:
                    self.send_zeros()
        self._done_to = stop

    def send_zeros(self) -> None:
        if self._zeros:
            self._uploads.begin(f"{self._path}/zeros", encode_zeros(self._zeros))
            self._zeros.clear()


class _Uploads:
    """A few requests under way at once, each thread with a connection of its own. Raises what the first to fail did."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._threads = ThreadPoolExecutor(UPLOADS, "upload")
        self._own = threading.local()
        self._connections: list[Connection] = []
        self._under_way: collections.deque[Future[None]] = collections.deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._threads.shutdown(cancel_futures=True)
        for connection in self._connections:
            connection.close()

    def begin(self, path: str, body: bytes) -> None:
        """Waits until there is room for another one."""
        if len(self._under_way) == UPLOADS:
            self._under_way.popleft().result()
        self._under_way.append(self._threads.submit(self._send, path, body))

    def wait(self) -> None:
        while self._under_way:
            self._under_way.popleft().result()

    def _send(self, path: str, body: bytes) -> None:
        connection: Connection | None = getattr(self._own, "connection", None)
        if connection is None:
            connection = self._own.connection = Connection(self._service)
            self._connections.append(connection)
        connection.post(path, body)
