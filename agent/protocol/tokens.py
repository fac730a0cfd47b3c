"""Tokens: a secret and the fingerprint of the CA it is for, so that whoever holds one knows whom to trust.

    ust1_<secret, base64url>_<SHA-256 of the CA certificate's DER, hex>     enrols one agent, once
    usa1_<secret, base64url>_<...>                                          an operator's

Only the secret travels to the service, and only over a connection that the fingerprint vouches for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Self

from agent.protocol.errors import TokenError

SERVICE_NAME = "understudy.service"
"""In every service's certificate, and what clients check, whatever address the service is reached by."""

_SECRET = re.compile(r"[A-Za-z0-9_-]{22,128}")
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_KINDS = {"ust1": "an enrolment token", "usa1": "an operator's token"}


@dataclass(frozen=True, slots=True)
class _Token:
    secret: str
    ca_fingerprint: str

    PREFIX: ClassVar[str]
    WAY_OUT: ClassVar[str]

    @property
    def text(self) -> str:
        return f"{self.PREFIX}_{self.secret}_{self.ca_fingerprint}"

    def __repr__(self) -> str:
        """Never the secret: this is what ends up in logs."""
        return f"{type(self).__name__}({self.PREFIX}_…_{self.ca_fingerprint[:8]})"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises TokenError, which says what is wrong without repeating the secret."""
        prefix, _, rest = text.strip().partition("_")
        if prefix != cls.PREFIX:
            found = _KINDS.get(prefix, "no token of Understudy's")
            raise TokenError(f"this is {found}, and {_KINDS[cls.PREFIX]} is needed", cls.WAY_OUT)
        secret, _, fingerprint = rest.rpartition("_")
        if not _SECRET.fullmatch(secret) or not _FINGERPRINT.fullmatch(fingerprint):
            raise TokenError("the token is damaged or was cut short", "copy it again, as one line without spaces")
        return cls(secret, fingerprint)


class EnrollToken(_Token):
    """Makes one machine an agent of this service, once and for a limited time."""

    __slots__ = ()
    PREFIX = "ust1"
    WAY_OUT = "ask for one: understudy enroll-token"


class AdminToken(_Token):
    """Lets an operator do everything."""

    __slots__ = ()
    PREFIX = "usa1"
    WAY_OUT = "it lies in the service's data folder: admin-token"
