"""A client with a valid certificate and bad intentions: it speaks TLS to the real service, and little else right.

Everything goes over blocking sockets of our own, so that no library repairs what is meant to be broken.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import socket
import ssl
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import zstandard
from blake3 import blake3

from agent.client import SERVICE_NAME, pinned_context
from agent.protocol.digests import DigestMap, block_digest
from agent.protocol.frames import encode_blocks, encode_offer, encode_zeros
from agent.protocol.grid import BlockGrid
from agent.state import State
from tests.faults.harness import Agent
from tests.patience import PATIENCE_SECONDS

BLOCK = 64 << 10


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes

    @property
    def code(self) -> str:
        """The error's code; empty where there is none."""
        try:
            return str(json.loads(self.body)["error"]["code"])
        except (ValueError, KeyError, TypeError):
            return ""

    @property
    def document(self) -> Any:
        assert self.status == 200, self.body
        return json.loads(self.body)


class Hostile:
    """Uses the identity that an agent has. Each request has a connection of its own unless `raw` says otherwise."""

    def __init__(self, agent: Agent, machine_id: str) -> None:
        state = State(agent.folder)
        self._port = agent.service.port
        self._context = pinned_context(state.ca_path.read_text())
        self._context.load_cert_chain(state.certificate_path, state.key_path)
        self.machine_id = machine_id

    def connect(self) -> ssl.SSLSocket:
        plain = socket.create_connection(("127.0.0.1", self._port), timeout=PATIENCE_SECONDS)
        return self._context.wrap_socket(plain, server_hostname=SERVICE_NAME)

    def ask(self, method: str, path: str, body: bytes = b"", *, headers: Sequence[str] = ()) -> Answer:
        with self.connect() as line:
            with contextlib.suppress(OSError):  # who refuses by the first part of a request may not wait for the rest
                line.sendall(request_bytes(method, path, body, headers))
            return read_answer(line)

    def post(self, path: str, message: Any) -> Answer:
        return self.ask("POST", path, message if isinstance(message, bytes) else json.dumps(message).encode())

    def begin(self, *sizes: int, path: str = "/dev/hostile", **more: Any) -> Answer:
        volumes = [
            {"path": f"{path}{index}", "size_bytes": size, "block_bytes": BLOCK} for index, size in enumerate(sizes)
        ]
        return self.post("/agent/v1/sessions", {"machine_id": self.machine_id, "volumes": volumes, **more})

    def commit(self, session: str, roots: list[str], **more: Any) -> Answer:
        message = {"roots": roots, "consistency": "crash", "completeness": "scanned", "age_seconds": 0.0}
        return self.post(f"/agent/v1/sessions/{session}/commit", {**message, **more})

    def push(self, content: bytes, **more: Any) -> str:
        """An honest push of one volume of whole blocks; its point's id. `more`: fields of the commit."""
        session = str(self.begin(len(content)).document["session"])
        assert self.blocks(session, blocks_of(content)).status == 200
        return str(self.commit(session, [root_of(content)], **more).document["id"])

    def blocks(self, session: str, body: bytes, volume: int | str = 0) -> Answer:
        return self.ask("POST", f"/agent/v1/sessions/{session}/volumes/{volume}/blocks", body)

    def offer(self, session: str, body: bytes, volume: int | str = 0) -> Answer:
        return self.ask("POST", f"/agent/v1/sessions/{session}/volumes/{volume}/offer", body)


def blocks_of(content: bytes) -> bytes:
    """One BLOCKS frame with all of a volume's content."""
    contents = [content[at : at + BLOCK] for at in range(0, len(content), BLOCK)]
    return encode_blocks(list(range(len(contents))), b"".join(map(block_digest, contents)), contents)


def root_of(content: bytes) -> str:
    digests = DigestMap(BlockGrid(len(content), BLOCK))
    for index in range(digests.grid.count):
        digests[index] = block_digest(content[index * BLOCK : (index + 1) * BLOCK])
    return digests.root().hex()


def request_bytes(method: str, path: str, body: bytes, headers: Sequence[str] = ()) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: understudy", "Connection: close", "Understudy-Protocol: 2", *headers]
    if not any(header.lower().startswith(("content-length", "transfer-encoding")) for header in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def read_answer(line: ssl.SSLSocket) -> Answer:
    """One answer; what the service does with the line afterwards is its own affair. A line that was cut: status 0."""
    received = b""
    with contextlib.suppress(OSError):
        while piece := line.recv(65536):
            received += piece
            head, _, body = received.partition(b"\r\n\r\n")
            length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
            if length is not None and len(body) >= int(length[1]):
                break
    head, _, body = received.partition(b"\r\n\r\n")
    return Answer(int(head.split(b" ")[1]), body) if head else Answer(0, b"")


# --- frames that no agent sends ---


def sealed_frame(
    indices: Sequence[int],
    digests: bytes,
    payload: bytes,
    *,
    kind: int = 2,
    codec: int = 0,
    reserved: int = 0,
    count: int | None = None,
    plain: int | None = None,
    packed: int | None = None,
    magic: bytes = b"USF1",
) -> bytes:
    """A frame with a right seal over whatever it says."""
    head = struct.pack(
        "<4sBBHIII",
        magic,
        kind,
        codec,
        reserved,
        len(indices) if count is None else count,
        len(payload) if plain is None else plain,
        len(payload) if packed is None else packed,
    )
    head += struct.pack(f"<{len(indices)}Q", *indices) + digests
    return head + blake3(head).digest() + payload


def good_blocks(indices: Sequence[int], rng: random.Random) -> bytes:
    contents = [rng.randbytes(BLOCK) for _ in indices]
    return encode_blocks(indices, b"".join(map(block_digest, contents)), contents)


def bad_blocks(count: int, rng: random.Random) -> Iterator[tuple[str, bytes]]:
    """BLOCKS bodies that must be refused, for a volume of `count` blocks; each with what is wrong with it."""
    good = good_blocks([1, 2], rng)
    content = rng.randbytes(BLOCK)
    digest = block_digest(content)
    compressor = zstandard.ZstdCompressor(level=3)
    yield "nothing", b""
    yield "noise", rng.randbytes(5000)
    for _ in range(20):
        yield "cut short", good[: rng.randrange(1, len(good))]
    for _ in range(40):
        at = rng.randrange(len(good))
        yield f"a bit turned at {at}", good[:at] + bytes([good[at] ^ 1 << rng.randrange(8)]) + good[at + 1 :]
    yield "something behind it", good + b"x"
    yield "two frames", good + good
    yield "another kind", encode_offer([1], digest)
    yield "zeros", encode_zeros([1])
    yield "a wrong digest", encode_blocks([1], block_digest(b"other"), [content])
    yield "the second digest wrong", encode_blocks([1, 2], digest + block_digest(b"other"), [content, content])
    yield "a digest of zeros for data", encode_blocks([1], bytes(32), [content])
    yield "outside", encode_blocks([count], digest, [content])
    yield "far outside", encode_blocks([2**64 - 1], digest, [content])
    yield "partly outside", encode_blocks([count - 1, count], digest * 2, [content, content])
    yield "not rising", sealed_frame([2, 1], digest * 2, content * 2)
    yield "one block twice", sealed_frame([1, 1], digest * 2, content * 2)
    yield "too short for a block", encode_blocks([1], block_digest(content[:512]), [content[:512]])
    yield "too long for a block", encode_blocks([1], block_digest(content + b"x"), [content + b"x"])
    yield "no block at all, but a payload", sealed_frame([], b"", content)
    yield "a huge count", sealed_frame([1], digest, content, count=2**32 - 1)
    yield "a count over the limit", sealed_frame(range(65537), bytes(32) * 65537, b"")
    yield "a huge payload announced", sealed_frame([1], digest, content, plain=2**32 - 1, packed=2**32 - 1)
    yield "a payload larger than its plain size", sealed_frame([1], digest, content, plain=100)
    yield "an unknown codec", sealed_frame([1], digest, content, codec=7)
    yield "an unknown kind", sealed_frame([1], digest, content, kind=9)
    yield "something in the reserved field", sealed_frame([1], digest, content, reserved=1)
    yield "another magic", sealed_frame([1], digest, content, magic=b"USF2")
    yield "not zstd", sealed_frame([1], digest, rng.randbytes(500), codec=1, plain=BLOCK)
    bomb = compressor.compress(bytes(1 << 30))
    yield "a bomb that says its size", sealed_frame([1], digest, bomb, codec=1, plain=BLOCK, packed=len(bomb))
    yield "a bomb with its size overwritten", _relabelled(bomb, BLOCK, digest)
    streamed = _streamed(1 << 30)
    yield "a bomb that says no size", sealed_frame([1], digest, streamed, codec=1, plain=BLOCK, packed=len(streamed))
    small = compressor.compress(content[:1000])
    yield "unpacks to too little", sealed_frame([1], digest, small, codec=1, plain=BLOCK, packed=len(small))
    two = compressor.compress(content[: BLOCK // 2]) * 2
    yield "two zstd frames", sealed_frame([1], digest, two, codec=1, plain=BLOCK, packed=len(two))
    packed = compressor.compress(content[:1] * BLOCK)
    yield "zstd cut short", sealed_frame([1], block_digest(content[:1] * BLOCK), packed[:-1], codec=1, plain=BLOCK)


def _relabelled(bomb: bytes, size_bytes: int, digest: bytes) -> bytes:
    """A zstd frame of a GiB that says in its header that it is a block's size."""
    at = bomb.find(struct.pack("<I", 1 << 30))
    assert 0 < at < 16, "the content size lies in the frame's header"
    lying = bomb[:at] + struct.pack("<I", size_bytes) + bomb[at + 4 :]
    return sealed_frame([1], digest, lying, codec=1, plain=size_bytes, packed=len(lying))


def _streamed(size_bytes: int) -> bytes:
    compressor = zstandard.ZstdCompressor(level=3, write_content_size=False).compressobj()
    packed = b"".join(compressor.compress(bytes(1 << 20)) for _ in range(size_bytes >> 20))
    return packed + compressor.flush()
