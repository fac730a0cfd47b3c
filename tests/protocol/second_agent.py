"""Another agent, written from docs/protocol.md and nothing else of ours: it proves that the page suffices.

It is as plain as can be: one connection, one request at a time, a volume in memory. Its block size is not ours.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import socket
import ssl
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zstandard
from blake3 import blake3
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

BLOCK = 16 << 10
PAGE = 4 << 10
IN_A_BATCH = 100
OFFER, BLOCKS, ZEROS, UNTIL, PATCHES = 1, 2, 3, 4, 5
STORED, ZSTD = 0, 1
HAS_IT, LACKING, COPIED, PATCHABLE = 0, 1, 2, 3


class Refused(Exception):
    """The service answered with an error; the text is its code."""


# --- digests and frames ---


def cut(volume: bytes, block_bytes: int = BLOCK) -> list[bytes]:
    return [volume[at : at + block_bytes] for at in range(0, len(volume), block_bytes)]


def digest(block: bytes) -> bytes:
    return blake3(block).digest() if any(block) else bytes(32)


def segments(digests: list[bytes]) -> list[bytes]:
    parts = [b"".join(digests[at : at + 1024]) for at in range(0, len(digests), 1024)]
    return [blake3(part, derive_key_context="understudy 2026 segment v1").digest() for part in parts]


def root(size_bytes: int, block_bytes: int, digests: list[bytes]) -> str:
    over = blake3(derive_key_context="understudy 2026 root v1")
    over.update(struct.pack("<QI", size_bytes, block_bytes))
    for segment in segments(digests):
        over.update(segment)
    return over.hexdigest()


def point_root(volume_roots: list[str]) -> str:
    over = blake3(derive_key_context="understudy 2026 point v1")
    for one in volume_roots:
        over.update(bytes.fromhex(one))
    return over.hexdigest()


def frame(kind: int, indices: list[int], digests: list[bytes], payload: bytes = b"") -> bytes:
    packed = zstandard.ZstdCompressor(level=1).compress(payload)
    codec = ZSTD if len(packed) < len(payload) else STORED
    travels = packed if codec == ZSTD else payload
    head = struct.pack("<4sBBHIII", b"USF1", kind, codec, 0, len(indices), len(payload), len(travels))
    head += struct.pack(f"<{len(indices)}Q", *indices) + b"".join(digests)
    return head + blake3(head).digest() + travels


def frames(body: bytes) -> Iterator[tuple[int, tuple[int, ...], list[bytes], bytes]]:
    """Kind, indices, digests and unpacked payload of each frame in a body."""
    while body:
        magic, kind, codec, reserved, count, plain, packed = struct.unpack_from("<4sBBHIII", body)
        assert (magic, reserved) == (b"USF1", 0)
        seal = 20 + 40 * count
        assert blake3(body[:seal]).digest() == body[seal : seal + 32]
        indices = struct.unpack_from(f"<{count}Q", body, 20)
        digests = cut(body[20 + 8 * count : seal], 32)
        payload = body[seal + 32 : seal + 32 + packed]
        if codec == ZSTD:
            payload = zstandard.ZstdDecompressor().decompress(payload, max_output_size=plain)
        assert len(payload) == plain
        yield kind, indices, digests, payload
        body = body[seal + 32 + packed :]


# --- the agent ---


class SecondAgent:
    """`state`: a folder for its key and certificates. `machine_id`: the hardware's."""

    def __init__(self, host: str, port: int, state: Path, machine_id: str) -> None:
        self._where = host, port
        self._state = state
        self.machine_id = machine_id
        self._session: str | None = None
        self._known: dict[str, list[bytes]] = {}
        """The digests under each root that a commit of ours was answered with."""
        self.sent_blocks = self.patched_blocks = self.pulled_patches = self.offered_unknowing = 0

    def enrol(self, token: str) -> dict[str, Any]:
        """Get an identity for an enrolment token. Believes the service by the fingerprint in it."""
        kind, _, rest = token.partition("_")
        secret, _, fingerprint = rest.rpartition("_")
        assert kind == "ust1"
        unproven = ssl.create_default_context()
        unproven.check_hostname, unproven.verify_mode = False, ssl.CERT_NONE
        line = http.client.HTTPSConnection(*self._where, context=unproven, timeout=60)
        with contextlib.closing(line):
            line.request("GET", "/ca.pem")
            ca = line.getresponse().read().decode()
        assert hashlib.sha256(ssl.PEM_cert_to_DER_cert(ca)).hexdigest() == fingerprint

        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "anything")])
        request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
        pem = serialization.Encoding.PEM
        self._state.mkdir()
        (self._state / "ca.pem").write_text(ca)
        about = {"hostname": "second", "machine_id": self.machine_id, "agent_version": "second 1", "inventory": {}}
        answer = self.post("/agent/v1/enroll", token=secret, csr_pem=request.public_bytes(pem).decode(), **about)
        pkcs8, no_password = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        (self._state / "key.pem").write_bytes(key.private_bytes(pem, pkcs8, no_password))
        (self._state / "certificate.pem").write_text(answer["certificate_pem"])
        return answer

    def hello(self) -> Any:
        return self.post("/agent/v1/hello", machine_id=self.machine_id, agent_version="second 1", volumes=[])

    def push(self, path: str, volume: bytes) -> Any:
        """One point of one volume; what the service answered to the commit."""
        blocks = cut(volume)
        digests = [digest(block) for block in blocks]
        begun = self.post(
            "/agent/v1/sessions",
            machine_id=self.machine_id,
            volumes=[{"path": path, "size_bytes": len(volume), "block_bytes": BLOCK}],
            supersedes=self._session,
        )
        self._session = begun["session"]
        before = self._known.get(begun["volumes"][0]["root"])
        if before is None or len(before) != len(digests):
            mine, theirs = segments(digests), self._segments(-(-len(digests) // 1024))
            offered = [at for at in range(len(digests)) if mine[at // 1024] != theirs[at // 1024]]
            self.offered_unknowing = len(offered)
        else:
            offered = [at for at in range(len(digests)) if digests[at] != before[at]]
        self.sent_blocks = self.patched_blocks = 0
        for at in range(0, len(offered), IN_A_BATCH):
            self._send(offered[at : at + IN_A_BATCH], blocks, digests)
        volume_root = root(len(volume), BLOCK, digests)
        point = self.post(
            f"/agent/v1/sessions/{self._session}/commit",
            roots=[volume_root],
            consistency="crash",
            completeness="scanned",
            age_seconds=0.5,
            label="by another agent",
            frozen_seconds=0.0,
            sent_bytes=0,
        )
        assert point["root"] == point_root([volume_root])
        self._known = {volume_root: digests}
        return point

    def _segments(self, count: int) -> list[bytes]:
        """What the replica holds, a digest for each segment."""
        found: list[bytes] = []
        while len(found) < count:
            path = f"/agent/v1/sessions/{self._session}/volumes/0/segments?first={len(found)}"
            found += cut(self.ask("GET", path), 32)
        return found

    def _send(self, indices: list[int], blocks: list[bytes], digests: list[bytes]) -> None:
        below = f"/agent/v1/sessions/{self._session}/volumes/0"
        answer = self.ask("POST", f"{below}/offer?sums=1", frame(OFFER, indices, [digests[at] for at in indices]))
        replies, sums = answer[: len(indices)], answer[len(indices) :]
        whole: list[int] = []
        patched: list[int] = []
        bitmaps, pages = b"", b""
        for at, reply in zip(indices, replies, strict=True):
            if reply == LACKING:
                whole.append(at)
            elif reply == PATCHABLE:
                own = cut(blocks[at], PAGE)
                theirs = struct.unpack_from(f"<{len(own)}H", sums)
                sums = sums[2 * len(own) :]
                changed = [number for number, page in enumerate(own) if zlib.crc32(page) & 0xFFFF != theirs[number]]
                bitmaps += sum(1 << number for number in changed).to_bytes(max(1, BLOCK // 32768), "little")
                pages += b"".join(own[number] for number in changed)
                patched.append(at)
        assert not sums
        if patched:
            body = frame(PATCHES, patched, [digests[at] for at in patched], bitmaps + pages)
            whole += json.loads(self.ask("POST", f"{below}/blocks", body))["mismatched"]
        if whole:
            whole.sort()
            content = b"".join(blocks[at] for at in whole)
            self.ask("POST", f"{below}/blocks", frame(BLOCKS, whole, [digests[at] for at in whole], content))
        self.sent_blocks += len(whole)
        self.patched_blocks += len(patched)

    def pull(self, point: str, held: bytes, *, pages: bool = True) -> bytes:
        """What volume 0 of a point holds, for somebody who holds `held` already, and can patch it or not."""
        found = json.loads(self.ask("GET", f"/agent/v1/points/{point}"))
        volume = found["volumes"][0]
        size_bytes, block_bytes = volume["size_bytes"], volume["block_bytes"]
        target = bytearray(held[:size_bytes].ljust(size_bytes, b"\0"))
        below = f"/agent/v1/points/{found['id']}/volumes/0"
        self.received = 0
        count = len(cut(target, block_bytes))
        for first in range(0, count, 1000):
            piece = list(range(first, min(first + 1000, count)))
            named = self._bring(f"{below}/diff?level=3{'&pages=1' * pages}", piece, target, block_bytes)
            wrong = self._bring(f"{below}/pages?level=3", named, target, block_bytes)
            assert not self._bring(f"{below}/diff?level=3", wrong, target, block_bytes)
        back = root(size_bytes, block_bytes, [digest(block) for block in cut(bytes(target), block_bytes)])
        assert back == volume["root"]
        self.post(f"{below}/pulled", root=back, machine_id=self.machine_id, received_bytes=self.received)
        return bytes(target)

    def _bring(self, path: str, indices: list[int], target: bytearray, block_bytes: int) -> list[int]:
        """Offer these blocks, take what comes; the blocks that were only named, or came out wrong of their pages."""
        left: list[int] = []
        while indices:
            blocks = {at: bytes(target[at * block_bytes : (at + 1) * block_bytes]) for at in indices}
            body = frame(OFFER, indices, [digest(blocks[at]) for at in indices])
            if "/pages" in path:
                sums = [zlib.crc32(page) & 0xFFFF for at in indices for page in cut(blocks[at], PAGE)]
                body += struct.pack(f"<{len(sums)}H", *sums)
            answer = self.ask("POST", path, body)
            self.received += len(answer)
            indices = []
            for kind, named, digests, payload in frames(answer):
                if kind == UNTIL:
                    indices = [at for at in blocks if at >= named[0]]
                    continue
                if kind == OFFER:
                    left += named
                    continue
                width = max(1, block_bytes // 32768) if kind == PATCHES else 0
                bitmaps = cut(payload[: width * len(named)], width) if width else []
                used = width * len(named)
                for position, (at, expected) in enumerate(zip(named, digests, strict=True)):
                    block = bytearray(len(blocks[at])) if kind == ZEROS else bytearray(blocks[at])
                    pages = range(0, len(block), PAGE) if kind != ZEROS else ()
                    for number, begin in enumerate(pages):
                        if kind == BLOCKS or int.from_bytes(bitmaps[position], "little") >> number & 1:
                            length = min(PAGE, len(block) - begin)
                            block[begin : begin + length] = payload[used : used + length]
                            used += length
                    if digest(bytes(block)) == expected:
                        target[at * block_bytes : at * block_bytes + len(block)] = block
                        self.pulled_patches += kind == PATCHES
                    else:
                        assert kind == PATCHES
                        left.append(at)
                assert used == len(payload)
        return left

    # --- HTTP ---

    def post(self, path: str, **message: Any) -> Any:
        return json.loads(self.ask("POST", path, json.dumps(message).encode()))

    def ask(self, method: str, path: str, body: bytes = b"") -> bytes:
        context = ssl.create_default_context(cafile=str(self._state / "ca.pem"))
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        if (self._state / "certificate.pem").exists():
            context.load_cert_chain(self._state / "certificate.pem", self._state / "key.pem")
        line = http.client.HTTPConnection(*self._where)
        plain = socket.create_connection(self._where, 60)
        with context.wrap_socket(plain, server_hostname="understudy.service") as line.sock:
            line.request(method, path, body, {"Understudy-Protocol": "2"})
            reply = line.getresponse()
            content = reply.read()
        if reply.status >= 400:
            raise Refused(json.loads(content)["error"]["code"])
        return content
