"""Pairing: a short code that an operator carries from a machine's screen to the service proves each to the other.

    machine (shows ABCD-EFGH)                       service (is told ABCD-EFGH by an operator)
    opening: nameplate ABC, element, description ->
                                                 <- answer: element, proof
    proof                                        ->
                                                 <- sealed: for this machine alone

The code's first part, its nameplate, only says which machine is meant, and is known to everybody. The rest is the
password of a SPAKE2 exchange: who does not know it, and be he in between, learns nothing from the exchange that he
could try passwords on, and has one guess, after which the code is worthless. The keys depend on all that was
said, so what is sealed comes from the service that was told the code, and only the machine that shows it can open it.

Logic only: bytes in, bytes out. Each side is used once.
"""

from __future__ import annotations

import hmac
import re
import secrets
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from spake2 import SPAKE2_A, SPAKE2_B, SPAKEError
from spake2.ed25519_basic import NotOnCurve

from agent.protocol.errors import BadMessage, PairingError, UsageError

ALPHABET = "2346789ACDEFGHJKMNPQRTUVWXY"
"""Without what looks alike on a bad screen: 0 and O, 1 and I and L, 5 and S; 8 and 2 stand for B and Z, too."""
NAMEPLATE_LENGTH = 3
CODE_LENGTH = 8
"""The secret part has 27^5 values: 14 million, of which somebody in between can try one."""
MAX_MACHINE_CHARACTERS = 200
_ELEMENT_BYTES = 33
_LOOKS_LIKE = str.maketrans("BZ", "82")
_NONCE = bytes(12)  # each key seals one message


@dataclass(frozen=True, slots=True)
class Code:
    """What the machine shows: letters and digits without the dash."""

    text: str

    @classmethod
    def new(cls) -> Code:
        return cls("".join(secrets.choice(ALPHABET) for _ in range(CODE_LENGTH)))

    @classmethod
    def parse(cls, typed: str) -> Code:
        """As a person typed it: in any case, with or without dashes and spaces. Raises UsageError."""
        text = re.sub(r"[\s-]", "", typed).upper().translate(_LOOKS_LIKE)
        if len(text) != CODE_LENGTH or not set(text) <= set(ALPHABET):
            raise UsageError(
                f"{typed[:40]!r} is no pairing code", "type what the machine's screen shows, like K7MX-4QRT"
            )
        return cls(text)

    @property
    def shown(self) -> str:
        return f"{self.text[:4]}-{self.text[4:]}"

    @property
    def nameplate(self) -> str:
        return self.text[:NAMEPLATE_LENGTH]

    @property
    def password(self) -> bytes:
        return self.text[NAMEPLATE_LENGTH:].encode()

    def __repr__(self) -> str:
        """Never the secret part: this is what ends up in logs."""
        return f"Code({self.nameplate}…)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """The machine's first word. `element` is hex; `machine` describes it for the operator."""

    nameplate: str
    element: str
    machine: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The service's, once an operator typed the code; both hex. The proof says that it was told the right one."""

    element: str
    proof: str


class MachineSide:
    def __init__(self, code: Code, machine: str) -> None:
        self._exchange = SPAKE2_A(code.password, idA=_MACHINE, idB=_SERVICE)
        self.opening = Opening(
            nameplate=code.nameplate,
            element=self._exchange.start().hex(),
            machine=printable(machine),
        )
        self._keys: _Keys | None = None

    def proof(self, answer: Answer) -> str:
        """Checks the service's proof; returns ours. Raises PairingError: whoever answers does not know the code."""
        keys = _Keys(_finished(self._exchange, answer.element), self.opening, answer.element)
        if not _same(keys.service_proof, answer.proof):
            raise PairingError(
                "what answered does not know this machine's code: it was mistyped, or somebody is in between",
                "this code is worthless now; type the next one, and look twice at the address of the service",
            )
        self._keys = keys
        return keys.machine_proof

    def open(self, sealed: str) -> bytes:
        """What the service sealed (hex); after proof(). Raises PairingError."""
        assert self._keys is not None
        try:
            return ChaCha20Poly1305(self._keys.sealing).decrypt(_NONCE, bytes.fromhex(sealed), None)
        except (ValueError, InvalidTag):
            raise PairingError("the service's last word was altered on its way", "pair again") from None


class ServiceSide:
    def __init__(self, code: Code, opening: Opening) -> None:
        """Uses the code's one attempt. Raises BadMessage for an element that is none."""
        exchange = SPAKE2_B(code.password, idA=_MACHINE, idB=_SERVICE)
        element = exchange.start().hex()
        self._keys = _Keys(_finished(exchange, opening.element), opening, element)
        self.answer = Answer(element=element, proof=self._keys.service_proof)

    def check(self, proof: str) -> None:
        """Raises PairingError unless the machine knows the code."""
        if not _same(self._keys.machine_proof, proof):
            raise PairingError("the machine that answered does not show the code that was typed")

    def seal(self, content: bytes) -> str:
        """Hex that only the machine can open; for one content. After check()."""
        return ChaCha20Poly1305(self._keys.sealing).encrypt(_NONCE, content, None).hex()


def printable(text: str) -> str:
    """A description of a machine as it may be shown on somebody's terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text)[:MAX_MACHINE_CHARACTERS]


_MACHINE, _SERVICE = b"understudy machine", b"understudy service"


class _Keys:
    """What both sides derive, from the exchange's key and from all that was said."""

    def __init__(self, key: bytes, opening: Opening, answer_element: str) -> None:
        said = [opening.nameplate, opening.element, opening.machine, answer_element]
        transcript = hashes.Hash(hashes.SHA256())
        for part in said:
            transcript.update(len(part.encode()).to_bytes(8, "big") + part.encode())
        salt = transcript.finalize()

        def derived(purpose: bytes) -> bytes:
            info = b"understudy pairing v1 " + purpose
            return HKDF(algorithm=hashes.SHA256(), length=32, salt=salt, info=info).derive(key)

        self.service_proof = derived(b"proof of the service").hex()
        self.machine_proof = derived(b"proof of the machine").hex()
        self.sealing = derived(b"sealing")


def _same(proof: str, shown: str) -> bool:
    return hmac.compare_digest(proof.encode(), shown.encode())


def _finished(exchange: Any, element: str) -> bytes:
    """The exchange's key. Raises BadMessage."""
    try:
        received = bytes.fromhex(element)
        if len(received) == _ELEMENT_BYTES:
            key: bytes = exchange.finish(received)
            return key
    except (ValueError, SPAKEError, NotOnCurve):
        pass
    raise BadMessage("what should be an element of the pairing is none")
