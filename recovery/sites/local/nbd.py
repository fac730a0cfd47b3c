"""An NBD client: the part of the protocol that moves blocks to and from a qemu-storage-daemon, and nothing else.

Fixed newstyle handshake, one export, simple replies, one request under way on each connection. Several threads
are served by several connections. Payloads go straight between the caller's buffer and the socket.
https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
"""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import socket
import struct
from collections.abc import Iterator

from agent.protocol.errors import Conflict, StorageError, StorageFull

_INIT_MAGIC = b"NBDMAGIC"
_OPTION_MAGIC = b"IHAVEOPT"
_OPTION_REPLY_MAGIC = 0x3E889045565A9
_REQUEST_MAGIC = 0x25609513
_REPLY_MAGIC = 0x67446698

_CLIENT_FLAGS = 0b11  # fixed newstyle, no zeroes
_OPT_GO = 7
_REP_ACK = 1
_REP_INFO = 3
_INFO_EXPORT = 0

_CMD_READ = 0
_CMD_WRITE = 1
_CMD_DISC = 2
_CMD_FLUSH = 3
_CMD_WRITE_ZEROES = 6

_REQUEST = struct.Struct(">IHHQQI")  # magic, flags, command, cookie, offset, length
_REPLY = struct.Struct(">IIQ")  # magic, errno, cookie

MAX_PAYLOAD_BYTES = 16 << 20
"""Of one request; QEMU takes up to 32 MiB."""
MAX_ZERO_BYTES = 1 << 30
BUFFER_BYTES = 1 << 20
"""Of a socket; more than the kernel's default, so that a block goes over in fewer turns."""

Buffer = bytes | bytearray | memoryview


class NBDConnection:
    """One connection; one request at a time. Errors of the line are OSError, errors of the disk StorageError."""

    def __init__(self, connected: socket.socket, export: str, name: str) -> None:
        self._socket = connected
        self._name = name
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            connected.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
        self.size_bytes = self._handshake(export.encode())

    def read(self, offset: int, into: memoryview) -> None:
        self._request(_CMD_READ, offset, len(into))
        self._check("read", offset, len(into))
        self._receive_into(into)

    def write(self, offset: int, data: memoryview) -> None:
        self._request(_CMD_WRITE, offset, len(data), data)
        self._check("write", offset, len(data))

    def zero(self, offset: int, length: int) -> None:
        self._request(_CMD_WRITE_ZEROES, offset, length)
        self._check("zero", offset, length)

    def flush(self) -> None:
        self._request(_CMD_FLUSH, 0, 0)
        self._check("flush", 0, 0)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._request(_CMD_DISC, 0, 0)
        self._socket.close()

    def _handshake(self, export: bytes) -> int:
        """Negotiate; returns the export's size in bytes."""
        magic, option_magic, _flags = struct.unpack(">8s8sH", self._receive(18))
        if magic != _INIT_MAGIC or option_magic != _OPTION_MAGIC:
            raise StorageError(f"{self._name}: what answers is no NBD server")
        body = struct.pack(">I", len(export)) + export + struct.pack(">H", 0)
        self._socket.sendall(
            struct.pack(">I", _CLIENT_FLAGS) + struct.pack(">8sII", _OPTION_MAGIC, _OPT_GO, len(body)) + body
        )
        size_bytes = 0
        while True:
            magic, _option, reply, length = struct.unpack(">QIII", self._receive(20))
            content = self._receive(length)
            if magic != _OPTION_REPLY_MAGIC or reply not in (_REP_ACK, _REP_INFO):
                raise StorageError(f"{self._name}: the NBD server refused: {content.decode(errors='replace')}")
            if reply == _REP_ACK:
                return size_bytes
            if struct.unpack_from(">H", content)[0] == _INFO_EXPORT:
                size_bytes = struct.unpack_from(">HQH", content)[1]

    def _request(self, command: int, offset: int, length: int, payload: memoryview | None = None) -> None:
        header = _REQUEST.pack(_REQUEST_MAGIC, 0, command, 0, offset, length)
        if payload is None:
            self._socket.sendall(header)
            return
        sent = self._socket.sendmsg([header, payload])
        if sent < len(header):
            self._socket.sendall(header[sent:])
            sent = len(header)
        if sent < len(header) + len(payload):
            self._socket.sendall(payload[sent - len(header) :])

    def _check(self, verb: str, offset: int, length: int) -> None:
        """Read the reply's header. Raises StorageFull, Conflict, StorageError."""
        magic, error, _cookie = _REPLY.unpack(self._receive(_REPLY.size))
        if magic != _REPLY_MAGIC:
            raise OSError(errno.EPROTO, "the NBD server's reply cannot be read")
        if error == 0:
            return
        what = f"cannot {verb} {length} bytes at {offset} of {self._name}: {os.strerror(error)}"
        if error == errno.ENOSPC:
            raise StorageFull(what)
        if error == errno.EPERM:
            raise Conflict(what, "it is open for reading only")
        raise StorageError(what)

    def _receive(self, length: int) -> bytearray:
        content = bytearray(length)
        self._receive_into(memoryview(content))
        return content

    def _receive_into(self, into: memoryview) -> None:
        while into:
            received = self._socket.recv_into(into, 0, socket.MSG_WAITALL)
            if received == 0:
                raise ConnectionResetError(errno.ECONNRESET, "the NBD server closed the line")
            into = into[received:]


class NBDClient:
    """A fixed set of connections to one export, shared by any number of threads.

    Raises StorageFull, StorageError (also when the line is lost: for good), Conflict (a write to a read-only export).
    """

    def __init__(self, connections: list[socket.socket], export: str, name: str) -> None:
        """Takes the sockets over, also when it raises StorageError."""
        self.name = name
        self._lost: str | None = None
        self._idle: queue.LifoQueue[NBDConnection] = queue.LifoQueue()
        self._all: list[NBDConnection] = []
        try:
            for connected in connections:
                self._all.append(NBDConnection(connected, export, name))
        except OSError as error:
            raise StorageError(f"cannot open {name}: {error}") from error
        finally:
            for connected in connections[len(self._all) :]:
                connected.close()
        self.size_bytes = self._all[0].size_bytes
        for connection in self._all:
            self._idle.put(connection)

    def read(self, offset: int, length: int) -> bytearray:
        content = bytearray(length)
        self.read_into(offset, memoryview(content))
        return content

    def read_into(self, offset: int, into: memoryview) -> None:
        self._check_range(offset, len(into))
        with self._connection() as connection:
            for at in range(0, len(into), MAX_PAYLOAD_BYTES):
                connection.read(offset + at, into[at : at + MAX_PAYLOAD_BYTES])

    def write(self, offset: int, data: Buffer) -> None:
        view = memoryview(data).cast("B")
        self._check_range(offset, len(view))
        with self._connection() as connection:
            for at in range(0, len(view), MAX_PAYLOAD_BYTES):
                connection.write(offset + at, view[at : at + MAX_PAYLOAD_BYTES])

    def zero(self, offset: int, length: int) -> None:
        self._check_range(offset, length)
        with self._connection() as connection:
            for at in range(0, length, MAX_ZERO_BYTES):
                connection.zero(offset + at, min(MAX_ZERO_BYTES, length - at))

    def flush(self) -> None:
        with self._connection() as connection:
            connection.flush()

    def close(self) -> None:
        """May be called twice, and while other threads wait: they get StorageError."""
        self._lost = self._lost or "it was closed"
        for connection in self._all:
            connection.close()

    def _check_range(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size_bytes:
            raise StorageError(f"{length} bytes at {offset} lie outside {self.name} ({self.size_bytes} bytes)")

    @contextlib.contextmanager
    def _connection(self) -> Iterator[NBDConnection]:
        connection = self._idle.get()
        try:
            if self._lost is not None:
                raise StorageError(f"{self.name} cannot be used: {self._lost}")
            yield connection
        except OSError as error:
            # a line that broke in the middle of a request cannot be used again, and one daemon serves all lines
            self._lost = f"the line to its qemu-storage-daemon was lost: {error}"
            raise StorageError(f"{self.name}: {self._lost}") from error
        finally:
            self._idle.put(connection)
