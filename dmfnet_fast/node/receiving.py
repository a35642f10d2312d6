"""The side of a node that is called: verification (C-ECHO) and storage (C-STORE)."""

from __future__ import annotations

import errno
import logging
import ssl
import time
import warnings
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from dmfnet_fast.errors import NodeBusyError, NodeError, require
from dmfnet_fast.node.counters import Counters
from dmfnet_fast.node.settings import Settings, Tls
from dmfnet_fast.node.spool import Refusal, RefusedError, Spool, Stored

# Seconds: for the handshake and the first message; between two messages or parts of one.
_HANDSHAKE, _SILENCE = 30, 120
# Within a part of a message.
_SILENT_PART = 30.0
_ASSOCIATIONS = 32
# Larger than the usual 16 KiB, which costs time with large images; a peer may still send smaller parts.
_PDU = 2**18
# More than any request for an association needs.
_LARGEST_PDU = 2**20
_SUCCESS = 0x0000
log = logging.getLogger(__name__)


class _ServerContext(ssl.SSLContext):
    """TLS for connections whose handshake is done by their own thread: one that stays silent blocks no other."""

    def wrap_socket(self, sock: Any, server_side: bool = False, **_: Any) -> Any:  # type: ignore[override]
        sock.settimeout(_HANDSHAKE)
        return super().wrap_socket(sock, server_side=server_side, do_handshake_on_connect=False)


def server_context(tls: Tls) -> ssl.SSLContext:
    """TLS 1.2 or newer; with authorities, only for peers that they have signed."""
    context = _ServerContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(tls.certificate, tls.key)
    if tls.authorities is not None:
        context.load_verify_locations(tls.authorities)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(tls: Tls) -> ssl.SSLContext:
    """TLS 1.2 or newer, with our certificate, to peers that the authorities have signed for their host's name."""
    context = ssl.create_default_context(cafile=str(tls.authorities))
    context.load_cert_chain(tls.certificate, tls.key)
    return context


def silence_libraries() -> None:
    """Keep the libraries' logs and warnings, which may quote headers, out of ours; what matters is logged here."""
    warnings.simplefilter("ignore")
    for name in ("pydicom", "pynetdicom"):
        # Imported first, which sets its level.
        require(name, "pacs")
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)


def cannot_listen(error: OSError, where: str, choose: str) -> NodeError:
    """The error for an address that cannot be listened on: one that may pass by itself, or not."""
    passing = error.errno in (errno.EADDRINUSE, errno.EADDRNOTAVAIL)
    return (NodeBusyError if passing else NodeError)(
        f"{where}: cannot be listened on: {error.strerror or error}; choose another {choose}"
    )


class Receiver:
    """Listens as long as it is open; images go into the spool.

    Args:
        arrived: is called with every image that is kept, after it was.

    Raises:
        NodeError: it cannot listen; a NodeBusyError where that may pass.
        MissingExtraError: the extra `pacs` is not installed.
    """

    def __init__(self, settings: Settings, spool: Spool, counters: Counters, arrived: Callable[[Stored], None]) -> None:
        pynetdicom = require("pynetdicom", "pacs")
        events, config = pynetdicom.evt, pynetdicom._config
        self._spool, self._counters, self._arrived = spool, counters, arrived
        self._studies: WeakKeyDictionary[Any, dict[str, float]] = WeakKeyDictionary()
        self._told: WeakKeyDictionary[Any, set[Refusal]] = WeakKeyDictionary()
        config.LOG_HANDLER_LEVEL = "none"
        # All storage classes, private and retired ones included, in whatever transfer syntax comes first.
        config.UNRESTRICTED_STORAGE_SERVICE = True
        entity = pynetdicom.AE(settings.ae_title)
        entity.add_supported_context(pynetdicom.sop_class.Verification, pynetdicom.ALL_TRANSFER_SYNTAXES)
        entity.require_called_aet = True
        entity.require_calling_aet = list(settings.callers)
        entity.maximum_associations = _ASSOCIATIONS
        entity.maximum_pdu_size = _PDU
        entity.acse_timeout, entity.dimse_timeout, entity.network_timeout = _HANDSHAKE, _SILENCE, _SILENCE
        self._entity = entity
        try:
            self._server = entity.start_server(
                (settings.host, settings.port),
                block=False,
                ssl_context=None if settings.tls is None else server_context(settings.tls),
                evt_handlers=[
                    (events.EVT_CONN_OPEN, _limit),
                    (events.EVT_PDU_RECV, _Cut(settings.largest_image + 1)),
                    (events.EVT_C_STORE, self._store),
                    (events.EVT_C_ECHO, self._echo),
                    (events.EVT_REJECTED, self._rejected),
                    (events.EVT_ABORTED, self._aborted),
                ],
            )
        except OSError as error:
            raise cannot_listen(error, f"{settings.host}:{settings.port}", "host or port") from error

    def close(self) -> None:
        """Stop listening, and end what is going on; images that were not acknowledged are not kept."""
        self._server.shutdown()
        for association in self._server.active_associations:
            association.abort()

    def receiving(self) -> set[str]:
        """Studies of which an open association has brought an image within the time that it may be silent."""
        now = time.monotonic()
        return {
            study
            for association in self._server.active_associations
            for study, last in list(self._studies.get(association, {}).items())
            if now - last < _SILENCE
        }

    def _echo(self, event: Any) -> int:
        self._counters.add("echoes")
        log.info("echo from %s", _caller(event))
        return _SUCCESS

    def _store(self, event: Any) -> int:
        request = event.request
        pynetdicom = require("pynetdicom", "pacs")
        try:
            meta = b"\0" * 128 + b"DICM" + pynetdicom.dsutils.encode_file_meta(event.file_meta)
            with request.DataSet.getbuffer() as dataset:
                stored = self._spool.add(
                    str(request.AffectedSOPClassUID),
                    str(request.AffectedSOPInstanceUID),
                    str(event.context.transfer_syntax),
                    meta,
                    dataset,
                )
        except RefusedError as error:
            self._counters.add("images", "refused")
            # Of a whole study, one line is enough.
            told = self._told.setdefault(event.assoc, set())
            if error.refusal not in told:
                told.add(error.refusal)
                log.error(
                    "image from %s refused (0x%04X): %s; further ones of this association are not logged",
                    _caller(event),
                    error.refusal.value,
                    error,
                )
            return error.refusal.value
        except Exception as error:
            # Its words may quote the image.
            self._counters.add("images", "refused")
            log.error("image from %s refused: %s", _caller(event), type(error).__name__)
            return 0xC000
        self._counters.add("images", "new" if stored.new else "repeated")
        if stored.differs:
            log.warning(
                "image %s from %s is there already with other content, which is kept",
                request.AffectedSOPInstanceUID,
                _caller(event),
            )
        self._counters.add("bytes", amount=request.DataSet.getbuffer().nbytes)
        self._studies.setdefault(event.assoc, {})[stored.study] = time.monotonic()
        self._arrived(stored)
        return _SUCCESS

    def _rejected(self, event: Any) -> None:
        self._counters.add("associations_refused")
        association = event.assoc
        called = association.requestor.primitive.called_ae_title
        if association.requestor.ae_title not in self._entity.require_calling_aet:
            why = "it is not among the callers"
        elif called != self._entity.ae_title:
            why = f"it called {called!r}"
        else:
            why = "there are too many at once"
        log.warning("association refused: %s: %s", _caller(event), why)

    def _aborted(self, event: Any) -> None:
        self._counters.add("associations_aborted")
        log.warning("association aborted: %s", _caller(event))


def _limit(event: Any) -> None:
    """Keep a peer, known or not, from holding a connection or the memory with a message that does not end."""
    transport = event.assoc.dul.socket
    transport.socket.settimeout(_SILENT_PART)
    receive = transport.recv

    def limited(length: int) -> Any:
        if length > _LARGEST_PDU:
            raise ConnectionError("a part of a message is larger than was agreed")
        try:
            return receive(length)
        except ssl.SSLError as error:
            log.warning("connection from %s ended: TLS: %s", event.address[0], error.reason or error)
            raise

    transport.recv = limited


class _Cut:
    """Cuts messages off at a number of bytes while they come, so that memory holds no more of each."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: WeakKeyDictionary[Any, int] = WeakKeyDictionary()

    def __call__(self, event: Any) -> None:
        held = self._held.get(event.assoc, 0)
        for item in getattr(event.pdu, "presentation_data_value_items", ()):
            # PS3.8, E.2: a byte whose second bit marks the last fragment of a command or data set, then the fragment.
            value = item.presentation_data_value
            item.presentation_data_value = value[: 1 + self._most - held]
            held = 0 if value[0] & 2 else held + len(item.presentation_data_value) - 1
        self._held[event.assoc] = held


def _caller(event: Any) -> str:
    requestor = event.assoc.requestor
    return f"{requestor.ae_title!r} at {requestor.address}"
