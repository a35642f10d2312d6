"""The side of a node that calls: results go to their destination by C-STORE."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from dmfnet_fast.errors import DMFNetError, require
from dmfnet_fast.node.receiving import client_context
from dmfnet_fast.node.settings import Settings

_CONNECTING, _ANSWER = 15, 60
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
# Uncompressed: implicit VR is what every peer takes, explicit VR what most prefer.
_SYNTAXES = ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2"]
# Stored, though with a remark (PS3.4, B.2.3), or there already (PS3.7, annex C): from an attempt whose answer was lost,
# as the UIDs are ours alone.
_STORED = (0x0000, 0xB000, 0xB006, 0xB007, 0x0111)


class SendingError(DMFNetError):
    """A result that could not be delivered; another attempt may help."""


def _why(association: Any, tls: bool) -> str:
    """Why there is no association."""
    if association.is_rejected:
        return "refuses the association: does it know our AE title?"
    if association.rejected_contexts:
        return "takes no Secondary Capture images"
    if tls:
        return "cannot be reached, hung up, or its certificate or ours is not accepted"
    return "cannot be reached, or hung up"


class Sender:
    """Sends files to the destination that the settings name."""

    def __init__(self, settings: Settings) -> None:
        pynetdicom = require("pynetdicom", "pacs")
        self._to = settings.destination
        entity = pynetdicom.AE(settings.ae_title)
        entity.add_requested_context(_SECONDARY_CAPTURE, _SYNTAXES)
        entity.connection_timeout, entity.acse_timeout = _CONNECTING, _ANSWER
        entity.dimse_timeout = entity.network_timeout = _ANSWER
        self._entity = entity
        self._tls: Any = None
        if self._to.tls:
            assert settings.tls is not None
            self._tls = client_context(settings.tls), self._to.host
        self._association: Any = None

    def send(self, files: Iterable[Path], delivered: Callable[[Path], None]) -> None:
        """Send files in one association.

        Args:
            delivered: is called with each file that the destination has acknowledged.

        Raises:
            SendingError: the destination cannot be reached, or does not take a file.
        """
        name = f"{self._to.ae_title} at {self._to.host}:{self._to.port}"
        self._association = association = self._entity.associate(
            self._to.host, self._to.port, ae_title=self._to.ae_title, tls_args=self._tls
        )
        if not association.is_established:
            raise SendingError(f"{name} {_why(association, self._to.tls)}")
        try:
            for file in files:
                self._send_one(association, name, file)
                delivered(file)
        except BaseException:
            association.abort()
            raise
        association.release()

    def _send_one(self, association: Any, name: str, file: Path) -> None:
        if not association.is_established:
            raise SendingError(f"{name} hung up")
        try:
            status = association.send_c_store(file)
        except Exception as error:
            # Whatever pynetdicom and pydicom make of a file that was damaged here.
            raise SendingError(f"{file} cannot be sent ({type(error).__name__})") from error
        if not status:
            raise SendingError(f"{name} hung up, or did not answer within {_ANSWER} seconds")
        if status.Status not in _STORED:
            raise SendingError(f"{name} refuses an image with status 0x{status.Status:04X}")

    def close(self) -> None:
        """End what is being sent."""
        if self._association is not None and self._association.is_established:
            self._association.abort()
