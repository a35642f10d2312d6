"""The `model.py` of a model for the Python backend of NVIDIA Triton Inference Server; the server runs a copy of it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as server

from dmfnet_fast import Fuser

NETWORK = "network.onnx"
# One converts pixels, one computes (calls to the engine are serialized), one applies the rules.
WORKERS = 3


class TritonPythonModel:
    """What the server makes of this file: one Fuser, whose calls get the requests that the server has batched."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the network.

        Args:
            args: of the server; the model's folder and version are used.

        Raises:
            Exception: any, which the server reports as the reason why the model is not ready.
        """
        self._fuser = Fuser(Path(args["model_repository"]) / args["model_version"] / NETWORK)
        self._pool = ThreadPoolExecutor(WORKERS)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Fuse every pair of every request; a request that cannot be fused gets an error, the others their images."""
        return list(self._pool.map(self._answer, requests))

    def _answer(self, request: Any) -> Any:
        a, b = (server.get_input_tensor_by_name(request, name).as_numpy() for name in ("a", "b"))
        try:
            fused = np.stack([self._fuse(*pair) for pair in zip(a, b, strict=True)])
        except Exception as error:
            # Raised, it would fail the other requests too.
            return server.InferenceResponse(error=server.TritonError(str(error)))
        return server.InferenceResponse([server.Tensor("fused", fused)])

    def _fuse(self, a: Any, b: Any) -> Any:
        """Fuse one pair; height x width x channels, as the result."""
        fused = self._fuser.fuse(*(image[..., 0] if image.shape[-1] == 1 else image for image in (a, b)))
        return fused.reshape(b.shape)

    def finalize(self) -> None:
        """Free the engine."""
        self._pool.shutdown()
        self._fuser.close()
