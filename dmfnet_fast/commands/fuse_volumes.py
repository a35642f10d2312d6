"""The half of `dmfnet-fuse` that fuses volumes: DICOM series and NIfTI files."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from PIL.Image import Image as PillowImage

from dmfnet_fast import __version__
from dmfnet_fast.artifacts.atomic import replacing
from dmfnet_fast.commands.engine_options import EngineOptions
from dmfnet_fast.commands.shared import progress
from dmfnet_fast.errors import OutputError, warn
from dmfnet_fast.fuser import Fuser, Range
from dmfnet_fast.html_page import generator
from dmfnet_fast.images.color import check_range
from dmfnet_fast.volumes import Alignment, Shown, Volume, align, draw_alignment, read_volume, show
from dmfnet_fast.volumes.fusing import Image, check_pair
from dmfnet_fast.volumes.looks import PUMPING, Looks, places_in
from dmfnet_fast.volumes.measures import foreground, sampled
from dmfnet_fast.volumes.messages import Message, anonymous
from dmfnet_fast.volumes.nifti import SUFFIXES, is_nifti, stem
from dmfnet_fast.volumes.page import to_html
from dmfnet_fast.volumes.report import COMMAND, MARK, Fusion, to_dict, to_json
from dmfnet_fast.volumes.writing import (
    Format,
    Provenance,
    VolumeWriter,
    check_output,
    holds_result,
    open_writer,
    remove_result,
)

FORMATS: tuple[Format, ...] = ("dicom", "nifti", "png")
Show: TypeAlias = Callable[[Iterable[Any], str, int | None], AbstractContextManager[Iterable[Any]]]
NAMES = ("alignment.png", "report.json", "report.html")


@dataclass(frozen=True)
class VolumeRequest:
    """The arguments and options for volumes; those that were not given are None."""

    a: Path
    b: Path
    output: Path
    engine: EngineOptions
    series_a: str | None
    series_b: str | None
    modality_b: str | None
    force_patient: bool
    grid: Literal["a", "b"]
    register: bool
    range_a: Range | None
    range_b: Range | None
    colormap: str | None
    stated_format: Format | None
    label: str | None
    overwrite: bool

    @property
    def grid_path(self) -> Path:
        """The file or folder of the volume whose grid the result has."""
        return self.a if self.grid == "a" else self.b

    @property
    def format(self) -> Format:
        """As stated, else by the output's name, else as the volume whose grid the result has."""
        if self.stated_format is not None:
            return self.stated_format
        named = self.output if is_nifti(self.output) else self.grid_path
        return "nifti" if is_nifti(named) else "dicom"


@dataclass(frozen=True)
class Place:
    """Where results go: what `open_writer` gets as its output, and the files that go with it."""

    volume: Path
    alignment: Path
    report: Path
    page: Path
    looks: Path

    @classmethod
    def of(cls, output: Path, kind: Format) -> Place:
        """In a folder; or beside a NIfTI file, under names that begin like its own."""
        folder, prefix = output, ""
        if is_nifti(output):
            folder, prefix = output.parent, f"{stem(output)}-"
        alignment, report, page = (folder / f"{prefix}{name}" for name in NAMES)
        volume = output if kind == "nifti" or prefix else output / "fused"
        return cls(volume, alignment, report, page, folder / f".{prefix}dmfnet-fuse-looks.jsonl")

    def check(self) -> None:
        """Raise an OutputError if writing would replace a file that this command did not make."""
        ours = _has(self.report, MARK)
        marked = {self.report: ours, self.alignment: ours, self.page: _has(self.page, generator(COMMAND))}
        for path, made_here in marked.items():
            if path.exists() and not made_here:
                raise OutputError(f"{path}: already exists and was not made by this command; choose another folder")


def _has(path: Path, mark: str) -> bool:
    return path.is_file() and mark in path.read_text(encoding="utf-8", errors="replace")


@dataclass
class _Steps:
    """How long each step took, in seconds.

    Attributes:
        show: shows the progress of steps.
        seconds: by the name of each step.
    """

    show: Show
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started

    @contextmanager
    def shown(self, name: str) -> Iterator[None]:
        """Also show when it begins and ends."""
        with self.timed(name), self.show([name], name, None) as steps:
            for _ in steps:
                yield


def fuse_volumes(request: VolumeRequest, fuser: Fuser | None = None, shown: Show = progress) -> dict[str, Any]:
    """Fuse two volumes and write all that belongs to the result.

    Args:
        request: what to fuse, and how.
        fuser: runs the engine that the request asks for; None opens it.
        shown: iterates over items and may show its progress; as `progress`.

    Returns:
        What `--json` prints: the report, the files, and how many slices were fused now and before.
    """
    for stated, name in ((request.range_a, "--range-a"), (request.range_b, "--range-b")):
        if stated is not None:
            check_range(stated, name)
    place, steps = Place.of(request.output, request.format), _Steps(shown)
    check_output(request.format, place.volume, request.grid_path, (request.a, request.b), request.label)
    place.check()
    others = _other_results(request)
    with request.engine.open() if fuser is None else nullcontext(fuser) as fuser:
        alignment, sources, warnings = _aligned(request, steps)
        shown_a = show(alignment.a, request.range_a)
        shown_b = show(alignment.b, request.range_b, request.colormap)
        warnings += _told(_range_doubts(request, shown_a, shown_b))
        check_pair(alignment.a, alignment.b)
        # Before anything is written: what cannot be drawn is not worth fusing.
        drawn = _png(draw_alignment(alignment))
        settings, info = _settings(request, alignment, shown_a, shown_b), fuser.info
        provenance = Provenance(__version__, info["file"], info["weights"], {**info, **settings})
        grid = alignment.a if request.grid == "a" else alignment.b
        writer = open_writer(
            request.format, place.volume, grid, sources, provenance, request.label, overwrite=request.overwrite
        )
        del sources
        for kind, volume in others:
            remove_result(kind, volume)
        with steps.timed("fusing and writing"):
            looks, already = _write(fuser, writer, shown_a, shown_b, place, shown)
            files = writer.finish()
    fusion = Fusion(
        alignment, shown_a, shown_b, looks, info, settings, request.format, len(files), steps.seconds, warnings
    )
    if fusion.pumping > PUMPING:
        message = (
            f"the brightness of the fused slices changes {fusion.pumping:.1f} times as unevenly from one to the next "
            "as that of their sources: compare the cuts across slices in the report"
        )
        warnings += _told([message])
    _write_report(place, fusion, drawn)
    slices = {"fused": grid.shape[0] - already, "already_there": already}
    return {**to_dict(fusion), "slices": slices, "files": [str(file) for file in files], "page": str(place.page)}


def _settings(request: VolumeRequest, alignment: Alignment, a: Shown, b: Shown) -> dict[str, Any]:
    """What decides the result beside sources, engine and weights."""
    return {
        "grid": request.grid,
        "transform": alignment.transform.round(9).tolist(),
        "range_a": list(a.limits),
        "range_b": list(b.limits),
        "colormap": b.palette,
        "seed": request.engine.seed,
        **request.engine.rules,
    }


def _other_results(request: VolumeRequest) -> list[tuple[Format, Path]]:
    """What earlier runs have left under the name of the same report: results in other formats, of a NIfTI file the one
    with the other suffix. Each as `remove_result` takes it.

    Raises:
        OutputError: there are some, and it was not asked to overwrite them: the one report would be about another one.
    """
    output = request.output
    places: list[tuple[Format, str, Path]]
    if is_nifti(output):
        kind_of_place, place = "name", output.parent
        files = [f"{stem(output)}{suffix}" for suffix in SUFFIXES]
        places = [("nifti", file, output.with_name(file)) for file in files if file.lower() != output.name.lower()]
    else:
        kind_of_place, place = "folder", output
        places = [(kind, kind, Place.of(output, kind).volume) for kind in FORMATS if kind != request.format]
    found = [one for one in places if holds_result(one[0], one[2])]
    if found and not request.overwrite:
        raise OutputError(
            f"{place}: holds a result in another format ({', '.join(name for _, name, _ in found)}), which its report "
            f"is about; choose another {kind_of_place}, or --overwrite it"
        )
    return [(kind, volume) for kind, _, volume in found]


def _told(messages: Iterable[str]) -> list[str]:
    """Warn of each message; what the report repeats of them."""
    found = list(messages)
    for message in found:
        warn(message)
    return [anonymous(message) for message in found]


def _aligned(request: VolumeRequest, steps: _Steps) -> tuple[Alignment, tuple[Volume, Volume], list[str]]:
    """Both volumes on one grid; as they were read, both in the space of the grid's volume; what the report warns of."""
    a, b = _read(request, steps)
    warnings = [
        f"{name}: {anonymous(text)}" for name, volume in (("A", a), ("B", b)) for text in volume.source.warnings
    ]
    warnings += _told(_doubts(a, b, request.colormap))
    with steps.shown("registering" if request.register else "aligning"):
        alignment = align(a, b, request.grid, register=request.register, force_patient=request.force_patient)
    warnings += map(anonymous, alignment.warnings)
    if request.grid == "a":
        b = replace(b, affine=np.linalg.inv(alignment.transform) @ b.affine)
    else:
        a = replace(a, affine=alignment.transform @ a.affine)
    return alignment, (a, b), warnings


def _read(request: VolumeRequest, steps: _Steps) -> tuple[Volume, Volume]:
    with steps.shown("reading A"):
        a = read_volume(request.a, request.series_a, modality="MR" if is_nifti(request.a) else None)
    with steps.shown("reading B"):
        b = read_volume(request.b, request.series_b, modality=request.modality_b)
    return a, b


def _doubts(a: Volume, b: Volume, colormap: str | None) -> Iterator[Message]:
    """What is probably not meant, judged by what the volumes say they show."""
    names = {"a": a.source.path, "b": b.source.path}
    if a.modality not in (None, "MR"):
        if b.modality == "MR":
            yield Message(f"{{a}} is {a.modality} and {{b}} is MR: are they swapped? The MRI comes first", **names)
        else:
            yield Message(f"{{a}} is {a.modality}, and the networks expect an MRI: is it the right series?", **names)
    if a.shape == b.shape and np.array_equal(a.affine, b.affine) and np.array_equal(a.values, b.values):
        yield Message("{b}: holds the same volume as {a}: is it the right series?", **names)
    if b.modality is None and not b.color and colormap is None:
        yield Message(
            "{b}: does not say what it shows, so it stays gray; --modality-b PET or SPECT gives it colors, and CT its "
            "range in Hounsfield units",
            **names,
        )


def _range_doubts(request: VolumeRequest, a: Shown, b: Shown) -> Iterator[Message]:
    """Stated ranges that leave nothing of the head, such as one in other units."""
    for stated, option, shown in ((request.range_a, "--range-a", a), (request.range_b, "--range-b", b)):
        if stated is None or shown.volume.color:
            continue
        head = sampled(shown.volume.values)[sampled(foreground(shown.volume))]
        low, high = shown.limits
        if len(head) and not ((head > low) & (head < high)).any():
            units = shown.volume.units or "without a unit"
            yield Message(
                f"{option} {low:g} {high:g}: no value of the head lies between them, so that it is all black or white; "
                f"its values go from {head.min():.4g} to {head.max():.4g} ({units})"
            )


def _write(fuser: Fuser, writer: VolumeWriter, a: Shown, b: Shown, place: Place, shown: Show) -> tuple[Looks, int]:
    """Fuse and write the slices that an earlier run has not; what is to be shown of all, and how many were there."""
    places = places_in(a.volume)
    looks = Looks(place.looks, writer.run, a.volume.shape, places)
    done = writer.done() & looks.known

    def take(number: int, image_a: Image, image_b: Image, fused: Image) -> None:
        # Looked at first: a slice that is there has been looked at.
        looks.add(number, image_a, image_b, fused)
        if number not in done:
            writer.write(number, fused)

    count = a.volume.shape[0]
    # Those that the report shows are fused again.
    todo = sorted(set(range(count)) - done | set(places.slices))
    label = "fusing" if len(done) < count else "fusing for the report"
    if done:
        label += f" ({len(done)} of {count} slices are already there)"
    with shown(fuser.fuse_slices(a, b, take, todo), label, len(todo)) as numbers:
        for _ in numbers:
            pass
    return looks, len(done)


def _png(image: PillowImage) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=3)
    return file.getvalue()


def _write_report(place: Place, fusion: Fusion, drawn: bytes) -> None:
    # The report first, by which the image of the alignment is known to be ours.
    with replacing(place.report) as temporary:
        temporary.write_text(to_json(fusion), encoding="utf-8")
    with replacing(place.alignment) as temporary:
        temporary.write_bytes(drawn)
    with replacing(place.page) as temporary:
        temporary.write_text(to_html(fusion, drawn), encoding="utf-8")
