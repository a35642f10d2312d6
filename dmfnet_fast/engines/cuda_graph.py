"""The whole network at one batch shape as a single CUDA graph launch between fixed buffers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from dmfnet_fast.errors import require
from dmfnet_fast.model.side_stream import with_side_stream

torch = require("torch", extra="torch")

# Warm-up runs before the capture, which must not compile kernels, choose algorithms or create library handles.
WARM_UPS = 2
# A capture begins by synchronizing the whole GPU, which would invalidate a capture in another thread.
_ONE_CAPTURE = threading.Lock()


class CapturedFusion:
    """A network captured as a CUDA graph for one set of input shapes.

    Args:
        network: forward function; takes tensors on `device` as keyword arguments.
        shapes: shapes of the inputs by name.
        device: a CUDA device with its index.
        stream: stream to run on; None creates one. No other live graph may use it: the cuBLAS workspace belongs to
            the stream and is freed with the first graph captured on it.
        side: a second stream for what can run beside the rest, of which the same holds; None runs everything on one.
        dtype: type of the inputs.
    """

    def __init__(
        self,
        network: Callable[..., Any],
        shapes: Mapping[str, Sequence[int]],
        device: Any,
        stream: Any = None,
        dtype: Any = torch.float32,
        side: Any = None,
    ) -> None:
        self._staged = {name: torch.zeros(shape, dtype=dtype, pin_memory=True) for name, shape in shapes.items()}
        self._inputs = {name: torch.zeros(shape, dtype=dtype, device=device) for name, shape in shapes.items()}
        self._network = network  # kept alive, as the graph reads its parameters
        self._graph = torch.cuda.CUDAGraph()
        self._stream = stream or torch.cuda.Stream(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))
        with (
            _ONE_CAPTURE,
            torch.inference_mode(),
            torch.cuda.device(device),
            torch.cuda.stream(self._stream),
            with_side_stream(side),
        ):
            for _ in range(WARM_UPS):
                network(**self._inputs)
            self._stream.synchronize()
            # Other threads may use the GPU during the capture, but must not call torch.cuda.synchronize.
            with torch.cuda.graph(self._graph, stream=self._stream, capture_error_mode="thread_local"):
                self._output = network(**self._inputs)
        self._fetched = torch.empty(self._output.shape, dtype=self._output.dtype, pin_memory=True)

    @property
    def stream(self) -> Any:
        """The stream of all copies and launches."""
        return self._stream

    def replay(self) -> None:
        """Launch the graph on the inputs that are on the GPU; returns before it has finished."""
        with torch.cuda.stream(self._stream):
            self._graph.replay()

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """Run the network on inputs of the captured shapes. The caller owns the result."""
        for name, staged in self._staged.items():
            staged.numpy()[...] = inputs[name]
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            for name, target in self._inputs.items():
                target.copy_(self._staged[name], non_blocking=True)
            self._graph.replay()
            self._fetched.copy_(self._output, non_blocking=True)
        self._stream.synchronize()
        fused: NDArray[Any] = self._fetched.numpy().copy()
        return fused
