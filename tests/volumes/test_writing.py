"""What all formats have in common: runs that go on, and what is never touched."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pydicom", reason="needs the extra dicom")
pytest.importorskip("gdcm", reason="needs the extra dicom")

from dmfnet_fast.errors import OutputError
from dmfnet_fast.volumes.reading import read_volume
from dmfnet_fast.volumes.volume import Volume
from dmfnet_fast.volumes.writing import Format, Provenance, open_writer
from tests.volumes.writing_helpers import FORMATS, PROVENANCE, colors, contents, write, write_all

Sources = tuple[Volume, Volume]


@pytest.fixture(scope="module")
def sources(written: Path) -> Sources:
    return read_volume(written / "MR"), read_volume(written / "PT")


@pytest.fixture(params=FORMATS)
def kind(request: pytest.FixtureRequest) -> Format:
    return request.param


def results(folder: Path) -> set[str]:
    """Files that are not hidden."""
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


def test_killed_runs_leave_nothing(sources: Sources, tmp_path: Path) -> None:
    """What a killed process was writing goes when the run is finished; what is not its own stays."""
    others = {".1234-5.part.txt.mine", ".notes.part.dcm", "1-2.part.dcm"}
    for name in (".1234-567.part.dcm", ".89-10.part", *others):
        (tmp_path / name).write_bytes(b"half")
    paths = write_all("dicom", tmp_path, sources)
    left = {path.name for path in tmp_path.iterdir()} - {path.name for path in paths}
    assert left == {*others, ".dmfnet-fuse-dicom.jsonl"}


@contextmanager
def full_disk(free: int) -> Iterator[None]:
    """Files cannot grow beyond `free` bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_run_goes_on(kind: Format, sources: Sources, tmp_path: Path) -> None:
    values = colors(sources[0].shape)
    first = open_writer(kind, tmp_path / "out", sources[0], sources, PROVENANCE)
    assert first.done() == set()
    write(first, values, [7, 0, 3])
    before = contents(tmp_path)
    second = open_writer(kind, tmp_path / "out", sources[0], sources, PROVENANCE)
    assert second.done() == {0, 3, 7}
    assert contents(tmp_path) == before
    with pytest.raises(OutputError, match="slice 2 was not written"):
        second.finish()
    write(second, values, sorted(set(range(len(values))) - second.done()))
    assert second.done() == set(range(len(values)))
    paths = second.finish()
    assert all(path.is_file() for path in paths)
    assert {path.name for path in paths} == results(tmp_path / "out")
    after = contents(tmp_path)
    third = open_writer(kind, tmp_path / "out", sources[0], sources, PROVENANCE)
    assert third.done() == set(range(len(values)))
    write(third, np.zeros_like(values))
    assert third.finish() == paths
    assert contents(tmp_path) == after


def test_it_does_not_matter_where_a_run_stopped(kind: Format, sources: Sources, tmp_path: Path) -> None:
    """The result of an interrupted run is that of one that was not, but for the times of DICOM."""
    values = colors(sources[0].shape)
    whole = write_all(kind, tmp_path / "whole", sources, values)
    write(open_writer(kind, tmp_path / "parts", sources[0], sources, PROVENANCE), values, [1, 2])
    writer = open_writer(kind, tmp_path / "parts", sources[0], sources, PROVENANCE)
    write(writer, values, sorted(set(range(len(values))) - {1, 2}))
    parts = writer.finish()
    assert [path.name for path in parts] == [path.name for path in whole]
    if kind == "dicom":
        np.testing.assert_array_equal(read_volume(tmp_path / "parts").values, values)
    else:
        assert [path.read_bytes() for path in parts] == [path.read_bytes() for path in whole]


def test_cut_off_lines_of_the_journal(kind: Format, sources: Sources, tmp_path: Path) -> None:
    values = colors(sources[0].shape)
    out = tmp_path / "out"
    write(open_writer(kind, out, sources[0], sources, PROVENANCE), values, [0, 1])
    (journal,) = out.glob(".*.jsonl")
    journal.write_text(journal.read_text() + '\n{"part": "0003.d')
    writer = open_writer(kind, out, sources[0], sources, PROVENANCE)
    write(writer, values, [2])
    assert open_writer(kind, out, sources[0], sources, PROVENANCE).done() == {0, 1, 2}


def test_two_runs_at_once(kind: Format, sources: Sources, tmp_path: Path) -> None:
    """A slice of the other run is not taken for one's own."""
    values = colors(sources[0].shape)
    first = open_writer(kind, tmp_path, sources[0], sources, PROVENANCE)
    # The other one looked before there was anything.
    (journal,) = tmp_path.glob(".*.jsonl")
    journal.unlink()
    second = open_writer(kind, tmp_path, sources[0], sources, PROVENANCE)
    write(first, values, [0, 1])
    if kind == "nifti":
        write(second, values, [2])
    else:
        with pytest.raises(OutputError, match="is not as this command wrote it"):
            write(second, values, [1])
    if kind == "nifti":
        assert open_writer(kind, tmp_path, sources[0], sources, PROVENANCE).done() == {2}
        return
    with pytest.raises(OutputError, match="is not as this command wrote it"):
        open_writer(kind, tmp_path, sources[0], sources, PROVENANCE)


def test_threads(kind: Format, sources: Sources, tmp_path: Path) -> None:
    values = colors(sources[0].shape)
    writer = open_writer(kind, tmp_path / "threads", sources[0], sources, PROVENANCE)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(writer.write, range(len(values)), values))
    paths = writer.finish()
    if kind == "png":
        expected = write_all(kind, tmp_path / "one", sources, values)
        assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in expected]
    else:
        np.testing.assert_array_equal(read_volume(paths[0] if kind == "nifti" else paths[0].parent).values, values)


def moved(volume: Volume) -> Volume:
    """A volume a tenth of a millimeter to the left."""
    affine = volume.affine.copy()
    affine[0, 3] += 0.1
    return replace(volume, affine=affine)


OTHERS: dict[str, Callable[[Sources], tuple[Sources, Provenance, dict[str, Any]]]] = {
    "weights": lambda sources: (sources, replace(PROVENANCE, weights="f" * 64), {}),
    "settings": lambda sources: (sources, replace(PROVENANCE, settings={"range_a": [0, 501]}), {}),
    "values": lambda sources: ((sources[0], replace(sources[1], values=sources[1].values * 2)), PROVENANCE, {}),
    "order": lambda sources: ((sources[1], sources[0]), PROVENANCE, {}),
    "place": lambda sources: ((sources[0], moved(sources[1])), PROVENANCE, {}),
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_run(other: str, kind: Format, sources: Sources, tmp_path: Path) -> None:
    write_all(kind, tmp_path / "out", sources)
    before = contents(tmp_path)
    changed, provenance, more = OTHERS[other](sources)
    with pytest.raises(OutputError, match="other inputs or settings"):
        open_writer(kind, tmp_path / "out", sources[0], changed, provenance, **more)
    assert contents(tmp_path) == before


def test_another_grid(kind: Format, sources: Sources, tmp_path: Path) -> None:
    write_all(kind, tmp_path / "out", sources)
    with pytest.raises(OutputError, match="other inputs or settings"):
        open_writer(kind, tmp_path / "out", moved(sources[0]), sources, PROVENANCE)


def test_overwriting(kind: Format, sources: Sources, tmp_path: Path) -> None:
    """An earlier run's files go, also where the new run has fewer slices; all else stays."""
    out = tmp_path / "out"
    write_all(kind, out, sources)
    (out / "notes.txt").write_text("mine")
    (out / "9999.dcm").write_bytes(b"mine")
    fewer = replace(sources[0], values=sources[0].values[:4])
    write_all(kind, out, (fewer, sources[1]), overwrite=True)
    mine = {"notes.txt", "9999.dcm"}
    assert len(results(out) - mine) == (1 if kind == "nifti" else 4)
    assert (out / "notes.txt").read_text() == "mine"
    assert (out / "9999.dcm").read_bytes() == b"mine"


def test_overwriting_what_was_changed(kind: Format, sources: Sources, tmp_path: Path) -> None:
    paths = write_all(kind, tmp_path / "out", sources)
    paths[-1].write_bytes(b"changed")
    before = contents(tmp_path)
    with pytest.raises(OutputError, match="was changed since") as caught:
        open_writer(kind, tmp_path / "out", sources[0], sources, PROVENANCE, overwrite=True)
    assert str(paths[-1]) in str(caught.value)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_foreign_files(overwrite: bool, kind: Format, sources: Sources, tmp_path: Path) -> None:
    name = {"dicom": "0005.dcm", "png": "0005.png", "nifti": "fused.nii.gz"}[kind]
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(OutputError, match="is not as this command wrote it") as caught:
        open_writer(kind, tmp_path, sources[0], sources, PROVENANCE, overwrite=overwrite)
    assert name in str(caught.value)
    assert contents(tmp_path) == {name: b"mine"}


@pytest.mark.parametrize("kind", ["dicom", "png"])
def test_a_foreign_file_that_appears_later(kind: Format, sources: Sources, tmp_path: Path) -> None:
    writer = open_writer(kind, tmp_path, sources[0], sources, PROVENANCE)
    path = tmp_path / {"dicom": "0002.dcm", "png": "0002.png"}[kind]
    path.write_bytes(b"mine")
    with pytest.raises(OutputError, match="is not as this command wrote it"):
        writer.write(1, colors(sources[0].shape)[1])
    assert path.read_bytes() == b"mine"


def test_a_foreign_nifti_that_appears_later(sources: Sources, tmp_path: Path) -> None:
    values = colors(sources[0].shape)
    path = tmp_path / "x.nii.gz"
    writer = open_writer("nifti", path, sources[0], sources, PROVENANCE)
    write(writer, values)
    path.write_bytes(b"mine")
    with pytest.raises(OutputError, match="is not as this command wrote it"):
        writer.finish()
    assert path.read_bytes() == b"mine"
    path.unlink()
    assert writer.finish() == [path]
    np.testing.assert_array_equal(read_volume(path).values, values)


def test_a_damaged_journal(kind: Format, sources: Sources, tmp_path: Path) -> None:
    write_all(kind, tmp_path, sources)
    (journal,) = tmp_path.glob(".*.jsonl")
    for content in (b"", b"{}\n", b"\xff\xfe", b"[1]", b'{"run": "1", "name": "x", "started": "y"}'):
        journal.write_bytes(content)
        before = contents(tmp_path)
        with pytest.raises(OutputError, match="is damaged"):
            open_writer(kind, tmp_path, sources[0], sources, PROVENANCE)
        assert contents(tmp_path) == before


def test_a_journal_that_names_files_elsewhere(sources: Sources, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_all("png", out, sources)
    (tmp_path / "mine.txt").write_text("mine")
    (journal,) = out.glob(".*.jsonl")
    name = json.loads(journal.read_text().splitlines()[0])["name"]
    entry = {"name": name, "part": "../mine.txt", "sha256": hashlib.sha256(b"mine").hexdigest()}
    journal.write_text(journal.read_text() + "\n" + json.dumps(entry))
    write_all("png", out, sources, overwrite=True)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_full_disk(kind: Format, sources: Sources, tmp_path: Path) -> None:
    values = colors(sources[0].shape)
    writer = open_writer(kind, tmp_path, sources[0], sources, PROVENANCE)
    write(writer, values, [0])
    before = results(tmp_path)
    with full_disk(2000), pytest.raises(OutputError, match=os.strerror(errno.EFBIG)):
        write(writer, values, [1])
    assert results(tmp_path) == before
    assert not list(tmp_path.glob(".*.part.*"))
    assert writer.done() == {0}
    again = open_writer(kind, tmp_path, sources[0], sources, PROVENANCE)
    assert again.done() == {0}
    write(again, values, range(1, len(values)))
    again.finish()


def test_a_disk_that_fills_up_at_the_end(sources: Sources, tmp_path: Path) -> None:
    values = colors(sources[0].shape)
    writer = open_writer("nifti", tmp_path / "x.nii", sources[0], sources, PROVENANCE)
    write(writer, values)
    with full_disk(10_000), pytest.raises(OutputError, match="cannot be written"):
        writer.finish()
    assert results(tmp_path) == set()
    again = open_writer("nifti", tmp_path / "x.nii", sources[0], sources, PROVENANCE)
    assert again.done() == set(range(len(values)))
    again.finish()
    assert results(tmp_path) == {"x.nii"}


@pytest.mark.parametrize("kind", ["dicom", "nifti"])
def test_a_disk_that_is_too_small(
    kind: Format, sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(OutputError, match="make room"):
        open_writer(kind, tmp_path, sources[0], sources, PROVENANCE)
    assert contents(tmp_path) == {}


def test_no_place_to_write(kind: Format, sources: Sources, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for output in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(OutputError, match=r"is a file|cannot be created"):
            open_writer(kind, output, sources[0], sources, PROVENANCE)
    assert contents(tmp_path) == {"file": b"mine"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(kind: Format, sources: Sources, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="cannot be"):
        open_writer(kind, tmp_path, sources[0], sources, PROVENANCE)
    assert contents(tmp_path) == {}


def test_never_among_the_sources(kind: Format, sources: Sources, written: Path) -> None:
    for output in (written / "PT", written / "PT" / "fused", written / "MR" / ".." / "MR"):
        with pytest.raises(OutputError, match="lies in the input folder"):
            open_writer(kind, output, sources[0], sources, PROVENANCE)
    assert not (written / "PT" / "fused").exists()


def test_never_onto_a_source(sources: Sources, written: Path) -> None:
    nifti = read_volume(written / "MR.nii.gz", modality="MR")
    with pytest.raises(OutputError, match="is one of the inputs"):
        open_writer("nifti", written / "MR.nii.gz", sources[0], (nifti, sources[1]), PROVENANCE)


def test_names_that_do_not_fit(sources: Sources, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is a name for NIfTI"):
        open_writer("png", tmp_path / "x.nii.gz", sources[0], sources, PROVENANCE)
    (tmp_path / "y.nii").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        open_writer("nifti", tmp_path / "y.nii", sources[0], sources, PROVENANCE)
    assert contents(tmp_path) == {}


def test_slices_that_do_not_fit(kind: Format, sources: Sources, tmp_path: Path) -> None:
    values = colors(sources[0].shape)
    writer = open_writer(kind, tmp_path, sources[0], sources, PROVENANCE)
    for index, rgb in (
        (-1, values[0]),
        (len(values), values[0]),
        (0, values[0][1:]),
        (0, values[0].astype(np.float32)),
    ):
        with pytest.raises(ValueError, match="not of a volume"):
            writer.write(index, rgb)


def test_no_patient_in_names_and_journals(kind: Format, sources: Sources, tmp_path: Path) -> None:
    paths = write_all(kind, tmp_path, sources)
    for name, content in contents(tmp_path).items():
        assert "hantom" not in name
        if kind != "dicom" or name not in {path.name for path in paths}:
            assert b"hantom" not in content
            assert b"PHANTOM" not in content
            assert str(tmp_path).encode() not in content


@pytest.mark.parametrize("label", ["", " ", "two\nlines", "für", "x" * 200])
def test_labels_that_cannot_be_drawn(label: str, sources: Sources, tmp_path: Path) -> None:
    for kind in FORMATS:
        with pytest.raises(OutputError, match="label"):
            open_writer(kind, tmp_path / "out", sources[0], sources, PROVENANCE, label)
    assert not (tmp_path / "out").exists()
