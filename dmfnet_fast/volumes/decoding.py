"""Decompression in a process of its own: gdcm ends the process that it runs in on some damaged images.

`python -m dmfnet_fast.volumes.decoding` is the other side. Both speak in messages of a JSON line, which ends with the
count of the bytes that follow it, and those bytes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

# For the process to start and to decompress a frame. The largest that is read takes a tenth of it.
SECONDS = 120.0


class DecodingError(Exception):
    """A frame that cannot be decompressed."""


class DecodingTimeout(Exception):
    """A frame that takes too long."""


def _send(stream: BinaryIO, header: dict[str, Any], data: bytes) -> None:
    stream.write(json.dumps({**header, "bytes": len(data)}).encode() + b"\n" + data)
    stream.flush()


def _receive(stream: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    """The next message, None at the end."""
    line = stream.readline()
    if not line.endswith(b"\n"):
        return None
    header = json.loads(line)
    data = stream.read(header["bytes"])
    return (header, data) if len(data) == header["bytes"] else None


class Decompressor:
    """A process that decompresses frames of one transfer syntax; to be used in a `with`."""

    def __init__(self, syntax: str) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "dmfnet_fast.volumes.decoding", syntax],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )

    def __enter__(self) -> Decompressor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.detach().close()  # type: ignore[attr-defined]
        self._process.wait()

    def decode(self, frame: bytes, options: dict[str, Any]) -> NDArray[Any]:
        """One encapsulated frame, with pydicom's options: (rows, columns) or (rows, columns, 3).

        Raises:
            DecodingError: the frame is damaged.
            DecodingTimeout: it took more than `SECONDS`; the process is ended then.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        late = threading.Event()

        def end() -> None:
            late.set()
            self._process.kill()

        timer = threading.Timer(SECONDS, end)
        timer.daemon = True
        timer.start()
        try:
            _send(stdin, options, frame)  # type: ignore[arg-type]
            answer = _receive(stdout)  # type: ignore[arg-type]
        except OSError as error:
            if not late.is_set():
                raise DecodingError("the decoder ended") from error
            answer = None
        finally:
            timer.cancel()
        if late.is_set() and answer is None:
            raise DecodingTimeout(f"more than {SECONDS:g} seconds")
        if answer is None or "shape" not in answer[0]:
            raise DecodingError("the decoder ended" if answer is None else answer[0]["error"])
        header, data = answer
        return np.frombuffer(data, header["dtype"]).reshape(header["shape"])


def _serve(syntax: str) -> None:
    """Answer messages on the standard input until it ends."""
    import pydicom.pixels.decoders.base  # type: ignore[import-not-found, unused-ignore]

    # Whatever C libraries print must not get between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    decoder = pydicom.pixels.decoders.base.get_decoder(pydicom.uid.UID(syntax))
    while (message := _receive(sys.stdin.buffer)) is not None:
        options, frame = message
        del options["bytes"]
        try:
            image, _ = decoder.as_array(frame, **options)
        except Exception as error:  # see elements.damage
            _send(answers, {"error": type(error).__name__}, b"")
        else:
            image = np.ascontiguousarray(image)
            _send(answers, {"dtype": image.dtype.str, "shape": image.shape}, image.tobytes())


if __name__ == "__main__":
    _serve(sys.argv[1])
