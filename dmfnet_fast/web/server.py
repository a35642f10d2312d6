"""A server of files in memory and on disk to the browser of this computer.

Every path begins with a secret, so that neither other users of the computer nor pages of other sites can read files.
"""

from __future__ import annotations

import ipaddress
import mimetypes
import secrets
import shutil
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any
from urllib.parse import unquote

from dmfnet_fast.errors import OutputError

LOCAL = "127.0.0.1"
ANY = ("0.0.0.0", "::")
# Addresses that documents use and nobody has; the route there is the one to everywhere.
_SOMEWHERE = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".wasm": "application/wasm",
    ".json": "application/json",
    ".css": "text/css; charset=utf-8",
    ".gz": "application/octet-stream",
}
_ISOLATION = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}
_HEADERS = {
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
# Reports hold their style and images; nothing in them may run or load more. The page states a policy of its own.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'none'; base-uri 'none'"


class Server:
    """Serves files by their names until it is closed.

    Args:
        files: by their paths within the site, contents or paths on disk.
        address: the address to listen on.
        port: the port; 0 takes a free one.
        isolated: whether pages are isolated from others, which lets them use several threads.

    Raises:
        OutputError: the address or the port cannot be used.
    """

    def __init__(
        self, files: Mapping[str, bytes | Path], address: str = LOCAL, port: int = 0, *, isolated: bool = True
    ) -> None:
        self._secret = secrets.token_urlsafe(24)
        self._tickets: dict[str, str] = {}
        about = {
            "files": dict(files),
            "prefix": f"/{self._secret}/",
            "isolation": _ISOLATION if isolated else {},
            "tickets": self._tickets,
        }
        handler = type("Handler", (_Handler,), about)
        kind = type("Listener", (_Listener,), {"address_family": _family(address)})
        try:
            self._server = kind((address, port), handler)
        except (OSError, OverflowError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise OutputError(f"{address} port {port}: cannot be listened on: {reason}") from error
        # How it was bound: an empty name and 0, too, stand for all addresses.
        bound = str(self._server.server_address[0])
        self._hosts = _hosts_of_all(bound) if bound in ANY else [address]

    @property
    def url(self) -> str:
        """Address of the site for this computer, with its secret; ends in a slash."""
        return self.urls[0]

    @property
    def urls(self) -> list[str]:
        """All addresses of the site that are known, as `url`: of a server that listens on 0.0.0.0 or :: several."""
        return [f"{self._origin(host)}/{self._secret}/" for host in self._hosts]

    def _origin(self, host: str) -> str:
        return f"http://{f'[{host}]' if ':' in host else host}:{self._server.server_address[1]}"

    def once(self, place: str) -> str:
        """An address that leads to a place in the site the first time that it is asked for, and nowhere after that.

        For starting a browser: other users of the computer can read the arguments of programs, which must not hold the
        secret.
        """
        ticket = f"/{secrets.token_urlsafe(24)}"
        self._tickets[ticket] = f"/{self._secret}/{place}"
        return f"{self._origin(self._hosts[0])}{ticket}"

    def serve(self) -> None:
        """Answer requests until `close` is called from another thread, or Ctrl-C."""
        self._server.serve_forever(poll_interval=0.2)

    @contextmanager
    def in_background(self) -> Iterator[str]:
        """Answer requests in a thread within this context, whose value is `url`; closed afterwards."""
        thread = threading.Thread(target=self.serve)
        thread.start()
        try:
            yield self.url
        finally:
            self.close()
            thread.join()

    def close(self) -> None:
        """Stop answering, and free the port."""
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.server_close()


def _hosts_of_all(address: str) -> list[str]:
    """Under which addresses a server that listens on 0.0.0.0 or :: can be reached, that for this computer first.

    Those are none that a browser opens. Other computers know this one by the addresses that its name has and by the
    one that it sends from; where it has none of these, its name may still be known.
    """
    family = _family(address)
    known: list[str] = []
    with suppress(OSError):
        known += [str(one[4][0]) for one in socket.getaddrinfo(socket.gethostname(), None, family, socket.SOCK_DGRAM)]
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((_SOMEWHERE[family], 9))  # sends nothing, but decides for an address to send from
        known.append(probe.getsockname()[0])
    found = [one for one in dict.fromkeys(known) if not _only_here(one)]
    return [LOCAL if family == socket.AF_INET else "::1", *(found or [socket.gethostname()])]


def _only_here(address: str) -> bool:
    """Whether an address leads other computers nowhere, or needs the name of an interface, which no browser takes."""
    known = ipaddress.ip_address(address.partition("%")[0])
    return known.is_loopback or known.is_link_local or known.is_unspecified


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


class _Listener(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Stay silent about connections that are reset, as browsers do."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    files: Mapping[str, bytes | Path]
    prefix: str
    isolation: Mapping[str, str]
    tickets: dict[str, str]
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds without a request, after which a connection is closed
    server_version, sys_version = "dmfnet-view", ""

    def do_GET(self) -> None:
        place = self.tickets.pop(self.path, None)
        if place is None:
            self._answer(with_content=True)
        else:
            self._send(HTTPStatus.SEE_OTHER, "text/plain", b"", True, {"Location": place})

    def do_HEAD(self) -> None:
        self._answer(with_content=False)

    def _answer(self, with_content: bool) -> None:
        path = unquote(self.path.partition("?")[0])
        # In constant time, so that the secret cannot be guessed piece by piece.
        known = secrets.compare_digest(path[: len(self.prefix)].encode(), self.prefix.encode())
        name = path[len(self.prefix) :]
        content = self.files.get(name or "index.html") if known else None
        if content is None:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", b"not found\n", with_content)
            return
        suffix = Path(name or "index.html").suffix.lower()
        kind = _TYPES.get(suffix) or mimetypes.guess_type(name)[0] or "application/octet-stream"
        if isinstance(content, bytes):
            self._send(HTTPStatus.OK, kind, content, with_content)
            return
        try:
            with content.open("rb") as file:
                self._start(HTTPStatus.OK, kind, content.stat().st_size, {"Content-Security-Policy": _POLICY})
                if with_content:
                    shutil.copyfileobj(file, self.wfile)
        except (FileNotFoundError, PermissionError, IsADirectoryError):
            self._send(HTTPStatus.NOT_FOUND, "text/plain", b"cannot be read\n", with_content)
        except OSError:
            self.close_connection = True  # the browser has left, or the file has changed

    def _start(self, status: HTTPStatus, kind: str, size: int, more: Mapping[str, str] = MappingProxyType({})) -> None:
        self.send_response(status)
        for header, value in {
            **_HEADERS,
            **self.isolation,
            **more,
            "Content-Type": kind,
            "Content-Length": str(size),
        }.items():
            self.send_header(header, value)
        self.end_headers()

    def _send(
        self,
        status: HTTPStatus,
        kind: str,
        content: bytes,
        with_content: bool,
        more: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        try:
            self._start(status, kind, len(content), more)
            if with_content:
                self.wfile.write(content)
        except OSError:
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Stay silent: paths hold the secret, and files may be named after patients."""
