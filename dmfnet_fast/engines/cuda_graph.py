"""One CUDA graph for one size of batch: the whole network as a single launch, between fixed buffers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from dmfnet_fast.errors import require

torch = require("torch", extra="torch")

# Before the capture, which may not compile kernels, choose algorithms or create library handles.
WARM_UPS = 2
# A capture begins by waiting for the whole GPU, which another capture does not survive.
_ONE_CAPTURE = threading.Lock()


class CapturedFusion:
    """A network at one size.

    Args:
        network: forward on tensors of `device`, given by their names.
        shapes: of its inputs, by name.
        device: a CUDA device, with its index.
        stream: to run on; None makes one. No other graph that is alive may use it: the memory in which cuBLAS works
            belongs to a stream, and is freed with the first graph that was captured there.
        dtype: of the inputs.
    """

    def __init__(
        self,
        network: Callable[..., Any],
        shapes: Mapping[str, Sequence[int]],
        device: Any,
        stream: Any = None,
        dtype: Any = torch.float32,
    ) -> None:
        self._staged = {name: torch.zeros(shape, dtype=dtype, pin_memory=True) for name, shape in shapes.items()}
        self._inputs = {name: torch.zeros(shape, dtype=dtype, device=device) for name, shape in shapes.items()}
        self._network = network  # the graph reads its memory
        self._graph = torch.cuda.CUDAGraph()
        self._stream = stream or torch.cuda.Stream(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))
        with _ONE_CAPTURE, torch.inference_mode(), torch.cuda.device(device), torch.cuda.stream(self._stream):
            for _ in range(WARM_UPS):
                network(**self._inputs)
            self._stream.synchronize()
            # Other threads may use the GPU meanwhile, but not wait for all of it (torch.cuda.synchronize).
            with torch.cuda.graph(self._graph, stream=self._stream, capture_error_mode="thread_local"):
                self._output = network(**self._inputs)
        self._fetched = torch.empty(self._output.shape, dtype=self._output.dtype, pin_memory=True)

    @property
    def stream(self) -> Any:
        """The stream that everything is done on."""
        return self._stream

    def replay(self) -> None:
        """Fuse what is in the buffers on the GPU; returns before it is done."""
        with torch.cuda.stream(self._stream):
            self._graph.replay()

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """What the network gives, for inputs of the captured shapes; owned by the caller."""
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
