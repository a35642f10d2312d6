"""`Fuser`: fuses images on any engine."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, SupportsFloat, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dmfnet_fast.artifacts.network_inputs import network_inputs
from dmfnet_fast.diffusion.noise import fusion_noise
from dmfnet_fast.engines import DEFAULT, open_engine, shipped, shipped_engine
from dmfnet_fast.engines.kinds import files
from dmfnet_fast.errors import DMFNetWarning, EngineError, ImageError, memory_guard, warn
from dmfnet_fast.images import color as color
from dmfnet_fast.images.color import DEFAULT_RULES, Canvas
from dmfnet_fast.images.io import Pixels, from_pil, load_image, to_8_bit, to_pil
from dmfnet_fast.images.padding import SMALLEST, STRIDE, pad
from dmfnet_fast.images.rules import Rules
from dmfnet_fast.precision import PRECISION_CHOICES, PrecisionChoice
from dmfnet_fast.wording import alternatives

if TYPE_CHECKING:
    from dmfnet_fast.volumes.fusing import Take
    from dmfnet_fast.volumes.showing import Shown
    from dmfnet_fast.volumes.volume import Volume
    from dmfnet_fast.web.comparison import Comparison

Range: TypeAlias = tuple[float, float]
ImageLike: TypeAlias = "str | os.PathLike[str] | Image.Image | NDArray[Any] | Source"
Batch: TypeAlias = "Sequence[ImageLike] | NDArray[Any]"


@dataclass(frozen=True)
class Source:
    """One image to fuse.

    Attributes:
        pixels: (H, W) or (H, W, 3).
        name: used in messages.
        kind: the type in which a result is returned, if the image is b.
        values: the values of black and white, if already known.
    """

    pixels: Pixels
    name: str
    kind: Literal["pil", "array"] = "array"
    values: Range | None = None


def _channels_last(pixels: Pixels) -> str:
    """What to do about an array C x H x W."""
    if pixels.ndim != 3 or pixels.shape[0] not in (1, 3):
        return ""
    return ": use image[0]" if pixels.shape[0] == 1 else ": channels come last, np.moveaxis(image, 0, -1)"


def _check_array(pixels: Pixels, name: str) -> None:
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise ImageError(f"{name}: has shape {pixels.shape}; gray is H x W, color H x W x 3{_channels_last(pixels)}")
    if pixels.dtype not in (np.uint8, np.uint16) and pixels.dtype.kind != "f":
        raise ImageError(
            f"{name}: has type {pixels.dtype}; use uint8, uint16 or float: for a CT, image.astype(np.float32), with "
            "range= the values of black and white"
        )
    if min(pixels.shape[:2]) < SMALLEST:
        height, width = pixels.shape[:2]
        raise ImageError(f"{name}: is {width}x{height}; the smallest size is {SMALLEST}x{SMALLEST}")
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise ImageError(f"{name}: holds NaN or infinity; replace them before fusing")


def _source(image: object, name: str) -> Source:
    if isinstance(image, Source):
        source = image
    elif isinstance(image, str | os.PathLike):
        name = os.fspath(image)
        loaded = load_image(image)
        source = Source(loaded.pixels, name, "pil", loaded.values)
    elif isinstance(image, Image.Image):
        source = Source(from_pil(image, name), name, "pil")
    elif isinstance(image, np.ndarray):
        if isinstance(image, np.ma.MaskedArray):
            raise ImageError(f"{name}: is a masked array; fill the masked values first")
        source = Source(image.astype(image.dtype.newbyteorder("="), copy=False), name, "array")
    else:
        raise ImageError(f"{name}: is a {type(image).__name__}; give a path, a PIL image or a numpy array")
    _check_array(source.pixels, source.name)
    return source


def _is_stack(image: NDArray[Any]) -> bool:
    return image.ndim == 4 or (image.ndim == 3 and image.shape[2] not in (1, 2, 3, 4))


def _items(images: ImageLike | Batch, name: str) -> list[Source] | None:
    """The images of a batch; None for a single image."""
    if isinstance(images, np.ndarray):
        if not _is_stack(images):
            return None
    elif not isinstance(images, list | tuple):
        return None
    return [_source(image, f"{name}[{n}]") for n, image in enumerate(images)]


def _range(stated: Any) -> Range | None:
    """The range of one image, which may not be one."""
    if stated is None:
        return None
    low, high = stated
    return float(low), float(high)


def _ranges(stated: Range | tuple[Range | None, Range | None] | None) -> tuple[Range | None, Range | None]:
    """The stated ranges of a and b; None where there is none."""
    if stated is None:
        return None, None
    try:
        first, second = stated
        if isinstance(first, SupportsFloat) and isinstance(second, SupportsFloat):
            both = float(first), float(second)
            return both, both
        return _range(first), _range(second)
    except (TypeError, ValueError) as error:
        raise ImageError(
            f"range {stated!r}: give (lo, hi), or ((lo, hi) or None for a, (lo, hi) or None for b)"
        ) from error


class Fuser:
    """Fuses registered images of two modalities: MRI with CT, PET or SPECT.

    The same input gives the same output, bit for bit, on the same engine with the same thread count and batch shape.
    Threads may share a Fuser; their calls to its engine are serialized. The thread count is a setting of the engine's
    library; torch has one for the whole process.

    Args:
        engine: the name of a network that ships with the package ("nano", "turbo"), which is run by the fastest
            library that is installed (see `info`); or the path of an engine file, of a kind in
            `dmfnet_fast.engines.kinds.ENGINE_KINDS`: weights, or what dmfnet-export makes.
        seed: seed of the fixed noise, 0 to 2^64 - 1, for networks that take noise.
        device: "cpu", "cuda" or "cuda:N"; None selects the first GPU for files that run only on GPUs, else the CPU.
        precision: precision of the arithmetic: "float32", "bfloat16" or, on a GPU, "float16". "auto" is float16 on a
            GPU (mean error at most a fifth of a gray level), bfloat16 on CPUs with native bfloat16 multiplication
            (mean error half a gray level), and float32 on others. The precision of an .engine file or an int8 .onnx
            file is fixed, and "auto" selects it.
        threads: CPU threads; None leaves the process's setting, initially one per core.
        keep_chroma: the least fraction of b's chroma that every pixel keeps, 0 to 1. It limits the fused luminance to
            values at which that much of the color can be represented, so that a hot spot stays yellow on bright fat;
            0 leaves the luminance to the network, and colors turn pale where it is bright. Hue never changes. Gray
            images are not affected.
        allow_invention: whether a pixel may be darker or brighter than everything in its 3x3 neighborhood in both
            sources.

    Raises:
        EngineError: the engine cannot be opened on this machine.
        MissingExtraError: the library that runs it is not installed.
    """

    def __init__(
        self,
        engine: str | os.PathLike[str] = DEFAULT,
        seed: int = 0,
        *,
        device: str | None = None,
        precision: PrecisionChoice = "auto",
        threads: int | None = None,
        keep_chroma: float = DEFAULT_RULES.kept_chroma,
        allow_invention: bool = DEFAULT_RULES.invention,
    ) -> None:
        if not isinstance(seed, int) or not 0 <= seed < 2**64:
            raise EngineError(f"seed {seed!r}: must be a whole number from 0 to 2^64 - 1")
        if threads is not None and (not isinstance(threads, int) or threads < 1):
            raise EngineError(f"threads {threads!r}: must be a whole number, at least 1")
        if not isinstance(engine, str | os.PathLike) or not os.fspath(engine):
            raise EngineError(f"engine {engine!r}: must be {alternatives(shipped())}, or the path of {files()}")
        if precision not in PRECISION_CHOICES:
            raise EngineError(f"precision {precision!r}: use {', '.join(PRECISION_CHOICES)}")
        try:
            self._rules = Rules(keep_chroma, allow_invention)
        except (TypeError, ValueError) as error:
            raise EngineError(f"keep_chroma {keep_chroma!r}: must be a number from 0 to 1") from error
        self._seed = seed
        self._lock = threading.Lock()
        self._path = shipped_engine(str(engine), device) if engine in shipped() else Path(engine)
        with memory_guard("the engine does not fit; use a smaller preset"):
            self._engine = open_engine(self._path, device, precision, threads)

    @property
    def info(self) -> dict[str, str]:
        """The file, engine, device and precision in use, and the hash of the weights."""
        return {"file": self._path.name, **self._engine.info}

    def run(
        self,
        a: NDArray[Any],
        b: NDArray[Any],
        *,
        noise: NDArray[Any] | None = None,
        interval: NDArray[Any] | None = None,
    ) -> NDArray[np.float32]:
        """Run the network alone, without the rules.

        Args:
            a: luminance of the anatomical images, float (N, 1, H, W) in [-1, 1]; H and W are multiples of 16 and at
                least 64.
            b: luminance of the other modality, of the same shape.
            noise: for a network that takes noise, (T, 2, H, W) standard normal, one slice per timestep; None selects
                the fixed noise of this Fuser's seed.
            interval: for a network that takes it, the least and the greatest luminance of each pixel, (N, 2, H, W) in
                [-1, 1]; None allows the full range.

        Returns:
            Fused luminance, float32 (N, 1, H, W) in [-1, 1].

        Raises:
            ImageError: a shape, type or value is not as above, or the network does not take the input.
            EngineError: the engine takes 8-bit images.
            OutOfMemoryError: the images are too large for the machine.
        """
        images = {"a": a, "b": b}
        for name, image in images.items():
            if not isinstance(image, np.ndarray) or image.dtype.kind != "f":
                raise ImageError(f"{name}: must be a float numpy array")
            if image.ndim != 4 or image.shape[1] != 1 or not len(image):
                raise ImageError(f"{name}: has shape {image.shape}, not (N, 1, H, W)")
            if any(size < SMALLEST or size % STRIDE for size in image.shape[2:]):
                raise ImageError(
                    f"{name}: is {image.shape[3]}x{image.shape[2]}; width and height must be multiples of "
                    f"{STRIDE}, at least {SMALLEST} (fuse() takes any size)"
                )
        if a.shape != b.shape:
            raise ImageError(f"a has shape {a.shape}, b has shape {b.shape}: they must be equal")
        interface = self._engine.interface
        if interface.pixels:
            raise EngineError(
                f"{self._path.name}: takes 8-bit images, not luminances: use fuse(), or a file made without --pixels"
            )
        pairs, _, height, width = a.shape
        shapes = interface.shapes(pairs, height, width)
        given = {"noise": noise, "interval": interval}
        for name, array in given.items():
            if array is None:
                continue
            if name not in shapes:
                raise ImageError(f"{name}: {self._path.name} does not take this input; leave it out")
            if not isinstance(array, np.ndarray) or array.dtype.kind != "f" or array.shape != shapes[name]:
                raise ImageError(f"{name}: must be a float array of shape {shapes[name]}")
            images[name] = array
        for name, array in images.items():
            finite = np.isfinite(array).all()
            if name == "noise" and not finite:
                raise ImageError("noise: holds NaN or infinity")
            # The tolerance allows for rounding but rejects images in 0..255.
            if name != "noise" and not (finite and np.abs(array).max() <= 1.0 + 1e-3):
                raise ImageError(f"{name}: values must be finite and lie in [-1, 1]")
        if interface.timesteps and noise is None:
            images["noise"] = fusion_noise(self._seed, height, width, interface.timesteps)
        if interface.interval and interval is None:
            images["interval"] = np.broadcast_to(np.array([[[-1.0]], [[1.0]]]), shapes["interval"])
        return self._run(images)

    def _run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Run the engine on valid inputs, which are given by name."""
        arrays = {name: np.ascontiguousarray(inputs[name], dtype=np.float32) for name in self._engine.interface.names}
        pairs, _, height, width = arrays["a"].shape
        with self._lock, self._memory_for(pairs, height, width):
            return self._engine.run(arrays)

    def fuse(
        self,
        a: ImageLike | Batch,
        b: ImageLike | Batch,
        *,
        range: Range | tuple[Range | None, Range | None] | None = None,  # noqa: A002
    ) -> Any:
        """Fuse images: the result combines the luminance of both and has the colors of `b`.

        Args:
            a: the anatomical image (MRI): a path, a PIL image, or an array H x W or H x W x 3 of uint8, uint16 or
                float. A list of these, or a stack N x H x W (x 3), is a batch.
            b: the image of the other modality, of the same size; for a batch, as many images as `a`.
            range: the values of black and white in 16-bit and float images: (lo, hi) for both, or one such pair (or
                None) for each of a and b. uint8 images always span 0..255. Without a range, float images span 0..1,
                and 16-bit data below 32768 is treated as n-bit data, with a warning.

        Returns:
            The fused image in the type, depth and range of `b`: an array for an array, a PIL image for a PIL image or
            a path, a list for a list, a stack for a stack.

        Raises:
            ImageError: an image cannot be read or fused; the message names it and says what to do.
            OutOfMemoryError: the images are too large for the machine.
        """
        sources_a, sources_b = _items(a, "a"), _items(b, "b")
        if (sources_a is None) != (sources_b is None):
            name, batch = ("a", a) if sources_b is None else ("b", b)
            shape = f" ({name} has shape {batch.shape}{_channels_last(batch)})" if isinstance(batch, np.ndarray) else ""
            raise ImageError(
                f"of a and b, one is a single image and the other a batch{shape}: give two images or two batches"
            )
        single = sources_a is None or sources_b is None
        if sources_a is None or sources_b is None:
            sources_a, sources_b = [_source(a, "a")], [_source(b, "b")]
        if len(sources_a) != len(sources_b):
            raise ImageError(
                f"a has {len(sources_a)} images, b has {len(sources_b)}: give as many of one as of the other"
            )
        if not sources_a:
            raise ImageError("a and b are empty: give at least one pair of images")

        stated = _ranges(range)
        if range is not None and all(s.pixels.dtype == np.uint8 for s in sources_a + sources_b):
            warn("range is not used: 8-bit images always span 0..255")
        fused = self._fuse_sources(sources_a, sources_b, stated)
        if single:
            return fused[0]
        return np.stack(fused) if isinstance(b, np.ndarray) else fused

    def show(
        self,
        a: ImageLike,
        b: ImageLike,
        *,
        range: Range | tuple[Range | None, Range | None] | None = None,  # noqa: A002
    ) -> Comparison:
        """Fuse two images and show them in a notebook, with a divider between any two of a, b and the fused image.

        Args:
            a, b, range: as for `fuse`, one image each.

        Returns:
            What a notebook shows, self-contained and at most 4 MB large, for which large images are shown smaller; its
            attribute `fused` is the fused image.

        Raises:
            ImageError, OutOfMemoryError: as `fuse`; or a or b is a batch.
        """
        from dmfnet_fast.web.comparison import Comparison

        if _items(a, "a") is not None or _items(b, "b") is not None:
            raise ImageError("a or b is a batch: give one image each")
        sources, stated = (_source(a, "a"), _source(b, "b")), _ranges(range)
        fused = self.fuse(*sources, range=range)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DMFNetWarning)  # `fuse` has issued them
            values = [
                color.value_range(source.pixels, one or source.values, source.name)
                for source, one in zip(sources, stated, strict=True)
            ]
        pixels = from_pil(fused, "fused") if isinstance(fused, Image.Image) else fused
        # PIL images cannot hold 16-bit color: then it has been reduced already.
        shown = {"a": (sources[0].pixels, values[0]), "b": (sources[1].pixels, values[1]), "fused": (pixels, values[1])}
        return Comparison(fused, {name: to_8_bit(*one) for name, one in shown.items()})

    def fuse_volume(
        self,
        a: Volume,
        b: Volume,
        *,
        range: Range | tuple[Range | None, Range | None] | None = None,  # noqa: A002
        colormap: str | None = None,
    ) -> Volume:
        """Fuse two volumes, slice by slice in a's own slice direction.

        Volumes on one grid, such as those of `volumes.align`, are fused as they are; others are first aligned by their
        headers onto a's grid. Each is shown in one range of values, and slices of it, as `volumes.show` displays them,
        give the same images with `fuse`.

        Args:
            a: the MRI.
            b: the volume of the other modality.
            range: the values of black and white: (lo, hi) for both, or one such pair (or None, which selects that of
                `volumes.display_range`) for each of a and b.
            colormap: for a gray b, one of `volumes.COLORMAPS`, or "gray"; None selects hot iron for PET and SPECT.

        Returns:
            The fused volume, in color, on a's grid.

        Raises:
            VolumeError: the volumes cannot be aligned, or one shows nothing.
            ImageError: a range is not two finite numbers in ascending order.
            OutOfMemoryError: the slices are too large for the machine.
            MissingExtraError: a colormap is needed, and the extra `dicom` is not installed.
        """
        from dmfnet_fast.volumes.alignment import align
        from dmfnet_fast.volumes.fusing import fused_volume, same_grid
        from dmfnet_fast.volumes.showing import show

        stated = _ranges(range)
        if not same_grid(a, b):
            alignment = align(a, b)
            a, b = alignment.a, alignment.b
        values = np.empty((*a.shape, 3), np.uint8)

        def keep(number: int, _a: Pixels, _b: Pixels, fused: Pixels) -> None:
            values[number] = fused

        for _ in self.fuse_slices(show(a, stated[0]), show(b, stated[1], colormap), keep):
            pass
        return fused_volume(values, a, b)

    def fuse_slices(self, a: Shown, b: Shown, take: Take, numbers: Iterable[int] | None = None) -> Iterator[int]:
        """Fuse two volumes of one grid without keeping more than a few slices of the result.

        Slices are fused in batches of the size that suits the engine, while others are prepared and taken.

        Args:
            a: the MRI, as displayed.
            b: the volume of the other modality, as displayed.
            take: gets each slice when it is fused: its number, from 0; the images a and b, (rows, columns) or (rows,
                columns, 3) uint8; and the fused image, (rows, columns, 3) uint8. It is called from several threads.
            numbers: the slices to fuse; None selects all.

        Yields:
            The number of each slice after `take` has returned, in any order.

        Raises:
            VolumeError: the volumes are on different grids, or their slices are smaller than 16x16.
            OutOfMemoryError: the slices are too large for the machine.
        """
        from dmfnet_fast.volumes.fusing import check_pair, fuse_slices

        check_pair(a.volume, b.volume)

        def fuse(pairs: list[tuple[Pixels, Pixels]]) -> Sequence[Pixels] | NDArray[np.uint8]:
            return self._fuse_images(pairs, [(color.EIGHT_BIT, color.EIGHT_BIT)] * len(pairs))

        return fuse_slices(fuse, self._engine.largest_batch, a, b, take, numbers)

    def _fuse_sources(
        self, sources_a: list[Source], sources_b: list[Source], stated: tuple[Range | None, Range | None]
    ) -> list[Any]:
        """Fuse pairs and return the results in their order; images of equal size are batched."""
        groups: dict[Hashable, list[int]] = {}
        values: list[tuple[Range, Range]] = []
        for index, (a, b) in enumerate(zip(sources_a, sources_b, strict=True)):
            if a.pixels.shape[:2] != b.pixels.shape[:2]:
                sizes = [f"{s.name} is {s.pixels.shape[1]}x{s.pixels.shape[0]}" for s in (a, b)]
                raise ImageError(f"{sizes[0]}, {sizes[1]}: register them to one size first")
            self._check_depth(a)
            self._check_depth(b)
            if color.is_color(a.pixels) and not color.is_color(b.pixels):
                warn(f"{a.name} is in color and {b.name} is gray: are they swapped? The MRI comes first")
            values_a = color.value_range(a.pixels, stated[0] or a.values, a.name)
            values.append((values_a, color.value_range(b.pixels, stated[1] or b.values, b.name)))
            # A batch of pixels must not mix gray and color images; a batch of luminances may.
            kind = b.pixels.ndim if self._engine_takes(a.pixels, b.pixels) else 0
            groups.setdefault((a.pixels.shape[:2], kind), []).append(index)

        results: list[Any] = [None] * len(values)
        for members in groups.values():
            for start in range(0, len(members), self._engine.largest_batch):
                batch = members[start : start + self._engine.largest_batch]
                images = [(sources_a[n].pixels, sources_b[n].pixels) for n in batch]
                for n, pixels in zip(batch, self._fuse_images(images, [values[n] for n in batch]), strict=True):
                    results[n] = to_pil(pixels, values[n][1]) if sources_b[n].kind == "pil" else pixels
        return results

    def _fuse_images(
        self, images: list[tuple[Pixels, Pixels]], values: list[tuple[Range, Range]]
    ) -> Sequence[Pixels] | NDArray[np.uint8]:
        """Fuse pairs of one size, for either all or none of which `_engine_takes` holds.

        If the engine does not take pixels, a `Canvas` converts them to its inputs and applies the rules.
        """
        if self._engine_takes(*images[0]):
            padded_a, places = zip(*(pad(color.luminance(a)) for a, _ in images), strict=True)
            a, b = np.stack(padded_a), np.stack([pad(b)[0] for _, b in images])
            with self._lock, self._memory_for(*a.shape):
                fused = self._engine.fuse_pixels(a, b, self._rules, self._seed)
            return fused[(slice(None), *places[0])]
        canvases = [Canvas(*pair, *ranges, self._rules) for pair, ranges in zip(images, values, strict=True)]
        inputs, inside = network_inputs(self._engine.interface, canvases, self._seed)
        luminances = self._run(inputs)
        return [canvas.finish(y[0][inside]) for canvas, y in zip(canvases, luminances, strict=True)]

    def _engine_takes(self, a: Pixels, b: Pixels) -> bool:
        """Whether the engine itself fuses the pixels of this pair, rules included."""
        if self._engine.interface.pixels:
            return True
        eight_bit = a.dtype == b.dtype == np.uint8
        # Others are padded after the rules were applied, which differs a little at the border.
        return self._engine.takes_pixels and eight_bit and all(s >= SMALLEST and s % STRIDE == 0 for s in a.shape[:2])

    def _check_depth(self, source: Source) -> None:
        """Raise an ImageError if the engine takes no images of this depth."""
        if self._engine.interface.pixels and source.pixels.dtype != np.uint8:
            raise ImageError(
                f"{source.name}: is {source.pixels.dtype}; {self._path.name} takes 8-bit images: convert it to uint8, "
                "or use a file made without --pixels"
            )

    def _memory_for(self, pairs: int, height: int, width: int) -> AbstractContextManager[None]:
        return memory_guard(f"{width}x{height} in a batch of {pairs} does not fit; use smaller images")

    def close(self) -> None:
        """Free the engine. A closed Fuser cannot fuse; closing it again has no effect."""
        with self._lock:
            self._engine.close()

    def __enter__(self) -> Fuser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
