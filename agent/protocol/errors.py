"""Every error an operator can meet, as one tree.

    UnderstudyError
    ├── UsageError            the command or the configuration is wrong
    ├── SourceError           a source volume cannot be replicated as asked
    │   ├── NotADisk
    │   ├── SourceInDoubt
    │   ├── SourceResized
    │   ├── SourceReadError
    │   └── FreezeError
    ├── TargetError           a disk that is to be written cannot be, or must not be
    ├── TransportError        the other side could not be reached, or the line was cut   (retryable)
    ├── TrustError            the other side is not who it should be, or its certificate is out of date
    ├── AuthError             who asks may not do this
    │   ├── TokenError
    │   └── PairingError
    ├── ProtocolError         the bytes received are not what the protocol allows
    │   ├── BadFrame
    │   ├── BadMessage
    │   ├── DigestMismatch
    │   └── VersionMismatch
    ├── SessionError          a push cannot go on as it is: forget the position and ask again
    │   ├── SessionUnknown                                                               (retryable)
    │   ├── RootMismatch                                                                 (retryable)
    │   ├── Superseded
    │   └── VolumeBusy                                                                   (retryable)
    ├── StaleEpoch            somebody else owns this server's identity now: stand down
    ├── NotFound              no such server, point, run or plan
    ├── Conflict              what is asked does not fit the present state
    ├── StorageError          replica storage failed
    │   └── StorageFull
    ├── SiteError             the recovery site could not do what was asked
    │   └── ToolMissing
    ├── RecoveryError         a run could not reach its goal
    │   └── GateFailed
    └── InternalError         a bug of ours; the log has the details

`code` is what travels on the wire, so a class may be renamed but a code may not.
Errors of libraries and of the operating system are translated into these at one boundary each.
"""

from __future__ import annotations

from typing import Any, ClassVar


class UnderstudyError(Exception):
    """What failed (`message`) and the way out (`hint`), each a sentence an operator can act on at 3 a.m."""

    code: ClassVar[str] = "error"
    http_status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False
    default_hint: ClassVar[str] = ""
    registry: ClassVar[dict[str, type[UnderstudyError]]] = {}

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = self.default_hint if hint is None else hint

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.code in UnderstudyError.registry:
            raise TypeError(f"error code {cls.code!r} is taken")
        UnderstudyError.registry[cls.code] = cls

    def __str__(self) -> str:
        """One line: what failed, and the way out."""
        return f"{self.message} ({self.hint})" if self.hint else self.message

    def to_json(self) -> dict[str, Any]:
        """The body of an error reply: `{"error": {code, message, hint, retryable}}`."""
        return {
            "error": {
                "code": self.code,
                "message": self.message,
                "hint": self.hint,
                "retryable": self.retryable,
            }
        }

    @staticmethod
    def from_json(document: Any) -> UnderstudyError:
        """The error that a reply carries; a code this version does not know becomes an InternalError."""
        error = document.get("error") if isinstance(document, dict) else None
        if not isinstance(error, dict):
            return InternalError("the service answered with an error that cannot be read")
        cls = UnderstudyError.registry.get(str(error.get("code")), InternalError)
        return cls(str(error.get("message", "unknown error")), str(error.get("hint", "")))


class UsageError(UnderstudyError):
    code = "usage"
    http_status = 400


class SourceError(UnderstudyError):
    code = "source"
    http_status = 422


class NotADisk(SourceError):
    code = "not_a_disk"
    default_hint = "name a whole disk, a partition or a disk image file"


class SourceInDoubt(SourceError):
    """Which disk of this machine is a protected volume cannot be told for certain."""

    code = "source_in_doubt"
    default_hint = "nothing was sent; see understudy-agent inventory, then say which it is: understudy-agent relocate"


class SourceResized(SourceError):
    code = "source_resized"
    default_hint = "nothing was lost; push again, and the new size is taken over"


class SourceReadError(SourceError):
    code = "source_read"
    default_hint = "earlier recovery points are untouched; check the disk (dmesg, smartctl) and push again"


class FreezeError(SourceError):
    code = "freeze"
    default_hint = "earlier recovery points are untouched; push again when the server is less busy"


class TargetError(UnderstudyError):
    code = "target"
    http_status = 422


class TransportError(UnderstudyError):
    code = "transport"
    http_status = 503
    retryable = True
    default_hint = "check that the service runs and that the network reaches it; nothing was lost"


class TrustError(UnderstudyError):
    code = "trust"
    http_status = 495


class AuthError(UnderstudyError):
    code = "auth"
    http_status = 403


class TokenError(AuthError):
    code = "token"
    http_status = 401
    default_hint = "ask for a new one: understudy enroll-token"


class PairingError(AuthError):
    code = "pairing"
    default_hint = "the machine shows another code soon: type that one"


class ProtocolError(UnderstudyError):
    code = "protocol"
    http_status = 400


class BadFrame(ProtocolError):
    code = "bad_frame"
    default_hint = "nothing was written; the sender may try again"


class BadMessage(ProtocolError):
    code = "bad_message"


class DigestMismatch(ProtocolError):
    code = "digest_mismatch"
    http_status = 422
    default_hint = "nothing was written; the sender may try again"


class VersionMismatch(ProtocolError):
    code = "version"
    http_status = 426
    default_hint = "bring agent and service to versions that speak the same protocol"


class SessionError(UnderstudyError):
    code = "session"
    http_status = 409


class SessionUnknown(SessionError):
    code = "session_unknown"
    retryable = True
    default_hint = "the agent asks where things stand and goes on from there"


class RootMismatch(SessionError):
    code = "root_mismatch"
    retryable = True
    default_hint = "no recovery point was made; push again, and only what differs is sent"


class Superseded(SessionError):
    code = "superseded"
    default_hint = "another agent with this identity took over; stop one of the two, or enrol it anew"


class VolumeBusy(SessionError):
    code = "volume_busy"
    retryable = True
    default_hint = "wait until the other push ends; if none should be running, two agents share one identity"


class StaleEpoch(UnderstudyError):
    code = "stale_epoch"
    http_status = 409
    default_hint = "this machine must stand down; after a failback it is told to go on"


class NotFound(UnderstudyError):
    code = "not_found"
    http_status = 404


class Conflict(UnderstudyError):
    code = "conflict"
    http_status = 409


class StorageError(UnderstudyError):
    code = "storage"
    http_status = 500
    default_hint = "recovery points made before are untouched; see the service's log"


class StorageFull(StorageError):
    code = "storage_full"
    http_status = 507
    default_hint = "no point was lost; free space or lower the number of points kept, then push again"


class SiteError(UnderstudyError):
    code = "site"
    http_status = 502


class ToolMissing(SiteError):
    code = "tool_missing"
    default_hint = "install it: apt-get install qemu-system-x86 qemu-utils"


class RecoveryError(UnderstudyError):
    code = "recovery"
    http_status = 409


class GateFailed(RecoveryError):
    code = "gate_failed"
    default_hint = "look at the console lines above; try another point with --point"


class InternalError(UnderstudyError):
    code = "internal"
    default_hint = "this is a fault of ours; the log has the details"
