"""The command line's connection to a service: found by --data or --url, trusted by the CA that the token names."""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import os
import ssl
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.protocol.errors import BadMessage, TransportError, TrustError, UnderstudyError, UsageError
from agent.protocol.tokens import SERVICE_NAME, AdminToken

TIMEOUT_SECONDS = 60.0
_FIND_IT = "say --data DIR of a service on this machine, or --url URL and --token TOKEN"


@dataclass(frozen=True, slots=True)
class Service:
    """A running service, as an operator sees it. Every request is made in the tenant's name (None: the default's)."""

    url: str
    token: AdminToken
    tenant: str | None = None

    @classmethod
    def of(cls, options: argparse.Namespace) -> Service:
        """By --data, or by --url and --token, or by UNDERSTUDY_URL and UNDERSTUDY_TOKEN. Raises UsageError."""
        data = getattr(options, "data", None)
        url = getattr(options, "url", None) or os.environ.get("UNDERSTUDY_URL")
        token = getattr(options, "token", None) or os.environ.get("UNDERSTUDY_TOKEN")
        if data is not None:
            url = url or _read_url(Path(data))
            token = token or _read(Path(data) / "admin-token", "run as the user whom the service runs as")
        if not url or not token:
            raise UsageError("which service is meant is not known", _FIND_IT)
        return cls(url.rstrip("/"), AdminToken.parse(token), getattr(options, "tenant", None))

    def get(self, path: str, **query: Any) -> Any:
        return self._json("GET", path, query, None)

    def post(self, path: str, document: dict[str, Any] | None = None, **query: Any) -> Any:
        return self._json("POST", path, query, json.dumps(document or {}).encode())

    def put(self, path: str, document: dict[str, Any], **query: Any) -> Any:
        return self._json("PUT", path, query, json.dumps(document).encode())

    def delete(self, path: str, **query: Any) -> Any:
        return self._json("DELETE", path, query, None)

    def content(self, path: str, **query: Any) -> bytes:
        """The body of an answer that is no JSON."""
        with _Exchange(self, "GET", path, query, None, TIMEOUT_SECONDS) as answer:
            return answer.read()

    def lines(self, path: str, **query: Any) -> Iterator[Any]:
        """POST, and each JSON line of the answer as it comes; a line may be long in coming."""
        with _Exchange(self, "POST", path, query, b"{}", None) as answer:
            for line in answer:
                document = json.loads(line)
                if "error" in document:
                    raise UnderstudyError.from_json(document)
                yield document

    def address(self, path: str, query: dict[str, Any]) -> str:
        """A path of the API with its query; what is None is left out."""
        known = {name: value for name, value in {"tenant": self.tenant, **query}.items() if value is not None}
        return path + ("?" + urllib.parse.urlencode(known) if known else "")

    def _json(self, method: str, path: str, query: dict[str, Any], body: bytes | None) -> Any:
        with _Exchange(self, method, path, query, body, TIMEOUT_SECONDS) as answer:
            try:
                return json.loads(answer.read())
            except ValueError:
                raise BadMessage(f"the answer of {self.url} to {path} is not JSON") from None


class Connection:
    """One connection for many requests, one after the other: for whoever has much to send."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._http: http.client.HTTPConnection | None = None

    def post(self, path: str, body: bytes, **query: Any) -> None:
        """A body that is no JSON. Raises what the service answered, TransportError, TrustError."""
        headers = {
            "Authorization": f"Bearer {self._service.token.text}",
            "Content-Type": "application/octet-stream",
        }
        try:
            if self._http is None:
                self._http = _connected(self._service, TIMEOUT_SECONDS)
            self._http.request("POST", self._service.address(path, query), body, headers)
            answer = self._http.getresponse()
            if answer.status >= 300:
                raise _error_of(self._service.url, answer)
            answer.read()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise _translated(self._service.url, error) from error

    def close(self) -> None:
        if self._http is not None:
            self._http.close()
            self._http = None


def api(*names: str) -> str:
    """A path of the API; what people call a server, a plan or a run may hold any character."""
    return "/api/v1/" + "/".join(urllib.parse.quote(name, safe="") for name in names)


class _Exchange:
    """One request; inside, its answer. Raises what the service answered, TransportError, TrustError."""

    def __init__(
        self,
        service: Service,
        method: str,
        path: str,
        query: dict[str, Any],
        body: bytes | None,
        timeout_seconds: float | None,
    ) -> None:
        self._service = service
        self._method = method
        self._path = service.address(path, query)
        self._body = body
        self._timeout_seconds = timeout_seconds
        self._connection: http.client.HTTPConnection | None = None

    def __enter__(self) -> http.client.HTTPResponse:
        url = self._service.url
        try:
            self._connection = _connected(self._service, self._timeout_seconds)
            headers = {"Authorization": f"Bearer {self._service.token.text}", "Content-Type": "application/json"}
            self._connection.request(self._method, self._path, self._body, headers)
            answer = self._connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            self.__exit__()
            raise _translated(url, error) from error
        if answer.status >= 300:
            failure = _error_of(url, answer)
            self.__exit__()
            raise failure
        return answer

    def __exit__(self, *_: object) -> None:
        if self._connection is not None:
            self._connection.close()


class _PinnedConnection(http.client.HTTPSConnection):
    """HTTPS whose certificate must carry the service's own name, whatever address it is reached by."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext, timeout_seconds: float | None) -> None:
        super().__init__(host, port, context=context, timeout=timeout_seconds)
        self._pinned = context

    def connect(self) -> None:
        http.client.HTTPConnection.connect(self)
        self.sock = self._pinned.wrap_socket(self.sock, server_hostname=SERVICE_NAME)


def _connected(service: Service, timeout_seconds: float | None) -> http.client.HTTPConnection:
    parts = urllib.parse.urlsplit(service.url)
    if parts.scheme != "https" or not parts.hostname:
        raise UsageError(f"{service.url!r} is no URL of a service", "it looks like https://HOST:8470")
    host, port = parts.hostname, parts.port or 8470
    context = ssl.create_default_context(cadata=_pinned_ca(host, port, service))
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return _PinnedConnection(host, port, context, timeout_seconds)


def _pinned_ca(host: str, port: int, service: Service) -> str:
    """The CA's certificate, fetched over a connection that is not trusted and proven by the token's fingerprint."""
    unverified = ssl.create_default_context()
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE
    connection = http.client.HTTPSConnection(host, port, context=unverified, timeout=10)
    try:
        connection.request("GET", "/ca.pem")
        ca_pem = connection.getresponse().read(65_536).decode("ascii")
        fingerprint = hashlib.sha256(ssl.PEM_cert_to_DER_cert(ca_pem)).hexdigest()
    except ValueError:
        raise TransportError(f"{service.url} is no Understudy service", "check the URL and the port") from None
    finally:
        connection.close()
    if fingerprint != service.token.ca_fingerprint:
        raise TrustError(
            f"{service.url} is not the service that this token is for: its CA has another fingerprint",
            "check the URL and the token",
        )
    return ca_pem


def _error_of(url: str, answer: http.client.HTTPResponse) -> UnderstudyError:
    try:
        return UnderstudyError.from_json(json.loads(answer.read()))
    except ValueError:
        return TransportError(f"{url} answered HTTP {answer.status}, and not as an Understudy service does")


def _translated(url: str, error: Exception) -> UnderstudyError:
    if isinstance(error, ssl.SSLCertVerificationError):
        return TrustError(f"{url} cannot be trusted: {error.verify_message}", "check this machine's clock and the URL")
    if isinstance(error, ConnectionRefusedError):
        return TransportError(f"no service answers at {url}", "start it: understudy serve --data DIR")
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return TransportError(f"{url} could not be reached: {reason}")


def _read_url(data: Path) -> str:
    if not data.is_dir():
        raise UsageError(f"{data} is no folder of a service", "start one there: understudy serve --data DIR")
    text = _read(data / "service.json", f"start it: understudy serve --data {data}", what=f"no service runs on {data}")
    return str(json.loads(text)["url"])


def _read(path: Path, hint: str, what: str | None = None) -> str:
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        raise UsageError(what or f"{path} is missing", hint) from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", hint) from None
