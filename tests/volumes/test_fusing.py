"""Slices are fused evenly, in any batches, at any size, and with few of them in memory."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pydicom", reason="needs the extra dicom")

from dmfnet_fast import Fuser
from dmfnet_fast.engines import shipped_engine
from dmfnet_fast.errors import ImageError, VolumeError
from dmfnet_fast.volumes import align, show
from dmfnet_fast.volumes.fusing import Image, fuse_slices
from dmfnet_fast.volumes.looks import PUMPING, Looks, places_in, pumping
from dmfnet_fast.volumes.phantom import HeadVolumes, make_head
from dmfnet_fast.volumes.showing import Shown
from dmfnet_fast.volumes.volume import Source, Volume


@pytest.fixture(scope="module")
def large() -> HeadVolumes:
    return make_head(seed=4, size=96)


def gray(values: np.ndarray) -> Shown:
    source = Source("gray", "gray", "gray", "computed", 0)
    return show(Volume(values.astype(np.float32), np.diag([3.0, 1, 1, 1]), "MR", None, None, source), (0, 255))


def brighter(pairs: list[tuple[Image, Image]]) -> list[Image]:
    return [np.maximum(a, b) for a, b in pairs]


@pytest.mark.parametrize("engine", ["nano", "turbo"])
@pytest.mark.parametrize("other", ["ct", "pet", "spect"])
def test_slices_do_not_pump(large: HeadVolumes, tmp_path: Path, engine: str, other: str) -> None:
    alignment = align(large.mr, getattr(large, other))
    a, b = show(alignment.a), show(alignment.b)
    looks = Looks(tmp_path / "looks.jsonl", "run", large.mr.shape, places_in(large.mr))
    with Fuser(engine, precision="float32") as fuser:
        assert sorted(fuser.fuse_slices(a, b, looks.add)) == list(range(20))
    assert 0 < pumping(looks.means) <= PUMPING


def test_pumping_is_noticed(large: HeadVolumes, tmp_path: Path) -> None:
    a = show(large.mr)
    looks = Looks(tmp_path / "looks.jsonl", "run", large.mr.shape, places_in(large.mr))
    for number in range(20):
        image = a.image(number)
        looks.add(
            number, image, image, np.rint(image * (0.9 + 0.1 * (number % 2))).astype(np.uint8)[..., None].repeat(3, 2)
        )
    assert pumping(looks.means) > PUMPING
    assert pumping(np.repeat(looks.means[:, :1], 3, axis=1)) == 1
    assert pumping(np.full((9, 3), 100.0)) == 0, "even volumes are no division by zero"
    assert pumping(looks.means[:2]) == 0


def test_looks_are_restored(large: HeadVolumes, tmp_path: Path) -> None:
    path, places = tmp_path / "looks.jsonl", places_in(large.mr)
    image = show(large.mr).image(9)
    fused = np.random.default_rng(0).integers(0, 256, (*image.shape, 3), np.uint8)
    Looks(path, "run", large.mr.shape, places).add(9, image, image, fused)
    with path.open("a") as file:
        file.write('{"slice": 3, "means": [1, 2')  # interrupted
    again = Looks(path, "run", large.mr.shape, places)
    assert again.known == {9}
    assert np.array_equal(again.along_row[9], fused[places.row])
    assert np.array_equal(again.along_column[9], fused[:, places.column])
    assert Looks(path, "another run", large.mr.shape, places).known == set()
    assert Looks(path, "run", large.mr.shape, places).known == set(), "another run has replaced it"


def test_places_are_in_the_head(large: HeadVolumes) -> None:
    places = places_in(large.mr)
    assert len(places.slices) == 6
    assert abs(places.row - 48) < 8
    assert abs(places.column - 48) < 8
    for number in places.slices:
        assert large.mr.values[number].max() > 300


@pytest.mark.parametrize("batch", [1, 4])
def test_batches_are_the_same_whatever_is_asked_for(batch: int) -> None:
    rng = np.random.default_rng(1)
    a, b = (gray(rng.integers(0, 256, (10, 32, 20))) for _ in range(2))
    sizes: list[int] = []
    taken: dict[int, np.ndarray] = {}

    def fuse(pairs: list[tuple[Image, Image]]) -> list[Image]:
        sizes.append(len(pairs))
        return brighter(pairs)

    def take(number: int, _a: Image, _b: Image, fused: Image) -> None:
        taken[number] = fused

    assert sorted(fuse_slices(fuse, batch, a, b, take, [1, 2, 9])) == [1, 2, 9]
    assert sorted(sizes) == ([1, 1, 1] if batch == 1 else [2, 4])
    for number, fused in taken.items():
        expected = np.maximum(a.volume.values[number], b.volume.values[number])
        assert fused.shape == (32, 20, 3)
        assert (fused == expected[..., None]).all()


def test_engines_that_gain_from_batches(head: HeadVolumes, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="needs the extra torch")
    with Fuser(shipped_engine("nano", "cuda"), device="cpu", precision="float32") as fuser:
        one_by_one = fuser.fuse_volume(head.mr, head.pet).values
        monkeypatch.setattr(fuser._engine, "largest_batch", 4)
        in_batches = fuser.fuse_volume(head.mr, head.pet).values
    assert np.abs(in_batches.astype(int) - one_by_one).max() <= 1


def test_few_slices_are_in_memory() -> None:
    shown = gray(np.zeros((40, 16, 16)))
    lock, alive, most = threading.Lock(), 0, 0

    def fuse(pairs: list[tuple[Image, Image]]) -> list[Image]:
        nonlocal alive, most
        with lock:
            alive += 1
            most = max(most, alive)
        return brighter(pairs)

    def take(*_: object) -> None:
        nonlocal alive
        with lock:
            alive -= 1

    assert len(list(fuse_slices(fuse, 1, shown, shown, take))) == 40
    assert most <= 3


def test_an_error_stops_the_rest() -> None:
    shown = gray(np.zeros((100, 16, 16)))
    taken: list[int] = []

    def take(number: int, *_: object) -> None:
        taken.append(number)
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        list(fuse_slices(brighter, 1, shown, shown, take))
    assert len(taken) < 100


def test_slices_smaller_than_the_network_takes(head: HeadVolumes) -> None:
    thin = Volume(head.mr.values[:, :20, :33].copy(), head.mr.affine, "MR", None, None, head.mr.source)
    with Fuser(precision="float32") as fuser:
        assert fuser.fuse_volume(thin, thin).values.shape == (10, 20, 33, 3)
        tiny = Volume(head.mr.values[:, :8].copy(), head.mr.affine, "MR", None, None, head.mr.source)
        with pytest.raises(VolumeError, match="slices of 48x8; the smallest size is 16x16"):
            fuser.fuse_volume(tiny, tiny)


def test_volumes_on_other_grids(head: HeadVolumes) -> None:
    with Fuser(precision="float32") as fuser:
        with pytest.raises(VolumeError, match="are on different grids; align them first"):
            list(fuser.fuse_slices(show(head.mr), show(head.ct), lambda *_: None))
        fused = fuser.fuse_volume(head.mr, head.ct, range=((0, 900), (-200, 800)))
    assert fused.shape == head.mr.shape
    assert fused.modality == "OT"


def test_how_volumes_are_shown(head: HeadVolumes) -> None:
    assert show(head.mr).palette is None
    assert show(head.ct).limits == (-100, 500)
    assert show(head.pet).palette == "hot-iron"
    assert show(head.spect, palette="gray").palette is None
    assert show(head.spect, (0, 10)).limits == (0, 10)
    levels = show(head.mr, (100, 200)).display(np.array([0, 100, 150, 200, 900], np.float32))
    assert levels.tolist() == [0, 0, 128, 255, 255]
    with pytest.raises(ImageError, match="must be two finite numbers"):
        show(head.mr, (5, 5))
    with pytest.raises(VolumeError, match="unknown colormap 'jet'"):
        show(head.pet, palette="jet")


def test_color_is_shown_as_it_is(head: HeadVolumes) -> None:
    values = np.random.default_rng(0).integers(0, 256, (10, 48, 48, 3), np.uint8)
    color = Volume(values, head.mr.affine, "PT", None, None, head.pet.source)
    assert np.array_equal(show(color).image(3), values[3])
    with pytest.raises(VolumeError, match="in color already; leave the colormap out"):
        show(color, palette="pet")
    with pytest.warns(UserWarning, match="its range is not used"):
        show(color, (0, 1))
    with Fuser(precision="float32") as fuser:
        assert fuser.fuse_volume(head.mr, color).color


def test_a_tracer_without_anything_dark_is_refused(head: HeadVolumes) -> None:
    """What a damaged intercept makes of a PET; a range that is stated shows it."""
    lifted = replace(head.pet, values=head.pet.values + 1e6)
    with pytest.raises(VolumeError, match=r"would be bright everywhere: .* state their range"):
        show(lifted)
    assert show(lifted, (1e6, 1.03e6)).limits == (1e6, 1.03e6)
    show(replace(head.mr, values=head.mr.values + 1e6))
