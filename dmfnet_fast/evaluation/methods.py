"""Fusion methods to compare: engines, folders of fused images, and two trivial fusions."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from dmfnet_fast.engines import shipped
from dmfnet_fast.errors import EngineError, ImageError
from dmfnet_fast.evaluation.dataset import Saved, Scene
from dmfnet_fast.fuser import Fuser
from dmfnet_fast.images.color import EIGHT_BIT, Canvas
from dmfnet_fast.images.io import FULL_16_BIT, load_image, to_8_bit
from dmfnet_fast.images.pairing import images_by_name
from dmfnet_fast.images.rules import Rules
from dmfnet_fast.precision import PRECISION_CHOICES, PrecisionChoice
from dmfnet_fast.wording import alternatives

NO_RULES = Rules(kept_chroma=0, invention=True)


class Method(ABC):
    """A way to obtain fused images.

    Attributes:
        label: unique name in the report.
        about: description in the report.
        timed: whether the report gives the time of fusing a pair.
    """

    timed = False

    def __init__(self, label: str, about: str) -> None:
        self.label, self.about = label, about

    def prepare(self, scene: Scene) -> None:  # noqa: B027
        """Prepare for `fuse`, which may be timed, on this pair. Raises the same errors as `fuse`."""

    @abstractmethod
    def fuse(self, scene: Scene) -> Saved:
        """The fused image of a pair, as saved in 8 bits.

        Raises:
            DMFNetError: the image cannot be fused or read.
        """


class Trivial(Method):
    """The mean or the maximum of both luminances in b's colors, desaturated where the luminance requires it.

    Args:
        label: "average" or "maximum".
    """

    def __init__(self, label: str) -> None:
        about = {"average": "the mean of both luminances", "maximum": "the brighter of both luminances at each pixel"}
        super().__init__(label, f"{about[label]}, in the colors of b")

    def fuse(self, scene: Scene) -> Saved:
        a, b = scene.sources
        canvas = Canvas(a.pixels, b.pixels, a.values or EIGHT_BIT, b.values or EIGHT_BIT, NO_RULES)
        fused = np.maximum(canvas.a, canvas.b) if self.label == "maximum" else (canvas.a + canvas.b) / np.float32(2)
        return to_8_bit(canvas.finish(fused), scene.values)


class EngineMethod(Method):
    """A network, run by an engine."""

    timed = True

    def __init__(self, label: str, fuser: Fuser) -> None:
        super().__init__(label, ", ".join(f"{key} {value}" for key, value in fuser.info.items()))
        self._fuser = fuser
        self._prepared_sizes: set[tuple[int, ...]] = set()

    def prepare(self, scene: Scene) -> None:
        """Fuse the first pair of each size untimed, as it may involve compilation."""
        size = scene.sources[0].pixels.shape[:2]
        if size not in self._prepared_sizes:
            self._fuser.fuse(*scene.sources)
            self._prepared_sizes.add(size)

    def fuse(self, scene: Scene) -> Saved:
        return to_8_bit(self._fuser.fuse(*scene.sources), scene.values)


class Folder(Method):
    """Images fused by other software: FOLDER/MODALITY/NAME.png, or another image format."""

    def __init__(self, label: str, folder: Path) -> None:
        super().__init__(label, f"images in {folder.name}")
        if not folder.is_dir():
            raise ImageError(f"{folder}: no such folder")
        self._folder = folder
        self._files: dict[str, dict[str, list[Path]]] = {}  # by modality and name

    def fuse(self, scene: Scene) -> Saved:
        place = self._folder / scene.pair.modality
        if scene.pair.modality not in self._files:
            self._files[scene.pair.modality] = images_by_name(place)[0] if place.is_dir() else {}
        found = self._files[scene.pair.modality].get(scene.pair.name, [])
        if not found:
            raise ImageError(f"{place / scene.pair.name}.*: no such image")
        if len(found) > 1:
            raise ImageError(f"{found[0]}: {found[1].name} has the same name; keep one of them")
        image = load_image(found[0])
        pixels = image.pixels
        source = scene.sources[1].pixels
        size = source.shape[:2]
        if pixels.shape[:2] != size:
            raise ImageError(
                f"{found[0]}: is {pixels.shape[1]}x{pixels.shape[0]}, the pair is {size[1]}x{size[0]}: give a fused "
                "image of the pair's size"
            )
        # An image that does not state its range has b's, or, if it has another depth than b, the full range of its own.
        full = FULL_16_BIT if pixels.dtype == np.uint16 else (0.0, 1.0)
        return to_8_bit(pixels, image.values or (scene.values if pixels.dtype == source.dtype else full))


class AsJPEG(Method):
    """Another method's images after JPEG compression, for comparison with results that were saved as JPEG."""

    def __init__(self, method: Method, quality: int) -> None:
        super().__init__(f"{method.label}, JPEG {quality}", f"{method.about}; saved as JPEG, quality {quality}")
        self.method, self._quality = method, quality

    def fuse(self, scene: Scene) -> Saved:
        return self.compress(self.method.fuse(scene))

    def compress(self, image: Saved) -> Saved:
        """The image after JPEG compression without chroma subsampling."""
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=self._quality, subsampling=0)
        return np.asarray(Image.open(file))


def _split_label(text: str) -> tuple[str | None, str]:
    """Label, or None, and the rest of "[LABEL=]REST"."""
    label, separator, rest = text.partition("=")
    if Path(text).exists():  # the path itself contains "="
        return None, text
    return (label, rest) if separator and label and rest else (None, text)


def parse_engine(text: str) -> tuple[str, str, PrecisionChoice]:
    """Label, engine and precision of "[LABEL=]ENGINE[@PRECISION]".

    Raises:
        EngineError: the engine exists, but what follows it is no precision.
    """
    label, rest = _split_label(text)
    engine, separator, wanted = rest.rpartition("@")
    precision = next((known for known in PRECISION_CHOICES if separator and known == wanted), None)
    if precision is None:
        if separator and not Path(rest).exists() and (engine in shipped() or Path(engine).is_file()):
            raise EngineError(f"{text}: precision {wanted!r}: use {alternatives(PRECISION_CHOICES)}")
        engine, precision = rest, "auto"
    stem = Path(engine).stem if Path(engine).suffix else engine
    return label or (f"{stem} {precision}" if precision != "auto" else stem), engine, precision


@contextmanager
def open_methods(
    engines: Sequence[str],
    folders: Sequence[str],
    trivial: bool,
    device: str | None,
    threads: int | None,
) -> Iterator[list[Method]]:
    """Open the requested methods: engines first, then folders, then the trivial fusions.

    Args:
        engines: each "[LABEL=]ENGINE[@PRECISION]", where ENGINE is as for `Fuser`.
        folders: each "[LABEL=]FOLDER".
        trivial: whether to add the maximum and the mean of both luminances.
        device, threads: as for `Fuser`, for all engines.

    Raises:
        DMFNetError: an engine or a folder cannot be opened.
    """
    with ExitStack() as stack:
        methods: list[Method] = []
        for text in engines:
            label, engine, precision = parse_engine(text)
            fuser = stack.enter_context(Fuser(engine, device=device, precision=precision, threads=threads))
            methods.append(EngineMethod(label, fuser))
        for text in folders:
            name, rest = _split_label(text)
            methods.append(Folder(name or Path(rest).resolve().name, Path(rest)))
        methods += [Trivial("maximum"), Trivial("average")] if trivial else []
        yield methods
