"""`align`: two volumes on one grid, by what their headers say of their place or by registration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from dmfnet_fast.errors import VolumeError, warn
from dmfnet_fast.volumes.measures import foreground, luminance, mutual_information
from dmfnet_fast.volumes.messages import Message
from dmfnet_fast.volumes.registration import register_rigid
from dmfnet_fast.volumes.resampling import resample
from dmfnet_fast.volumes.volume import Affine, Volume

# Below these shares, two volumes may not belong together.
LOW_COVERAGE = 0.8
LOW_OVERLAP = 0.85
# Below this, there is nothing to fuse.
NO_COVERAGE = 0.01
# Voxels that are enough to measure a share.
_POINTS = 1_000_000


@dataclass(frozen=True, eq=False)
class Alignment:
    """Two volumes on one grid, and how well they lie on each other.

    Attributes:
        a, b: the volumes, of one shape and affine; the one whose grid it is has its values unchanged.
        grid: whose grid it is.
        transform: 4x4, from mm in a's space to mm in b's, LPS; the identity unless they were registered.
        registered: whether the transform comes from registration.
        coverage: share of the first volume's head (of `a`) that lies within what `b` shows, 0 to 1.
        overlap: share of the smaller of both foregrounds that lies in the other one, 0 to 1.
        mutual_information: in bits, over the voxels that both show.
        mutual_information_by_headers: the same before registration; equal to it where there was none.
        inverse_error: largest disagreement, in mm in the head, of the registrations there and back; None without one.
        warnings: what the user should know before trusting the result, each also issued as a `DMFNetWarning`.
    """

    a: Volume
    b: Volume
    grid: Literal["a", "b"]
    transform: Affine
    registered: bool
    coverage: float
    overlap: float
    mutual_information: float
    mutual_information_by_headers: float
    inverse_error: float | None
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Fit:
    a: Volume
    b: Volume
    coverage: float
    overlap: float
    mutual_information: float


def align(
    a: Volume, b: Volume, grid: Literal["a", "b"] = "a", *, register: bool = False, force_patient: bool = False
) -> Alignment:
    """Bring two volumes onto the grid of one of them, linearly interpolated.

    By their headers alone, unless `register` is given: then `b` is moved onto `a` rigidly by mutual information.

    Args:
        a: the MRI, whose head coverage is measured against.
        b: the other volume.
        grid: whose voxels and slices to take.
        register: needs the extra `register`.
        force_patient: align volumes although their headers name different patients.

    Raises:
        VolumeError: the volumes are of different patients or do not overlap, `a` shows nothing, or registrations there
            and back disagree by more than 2 mm.
        MissingExtraError: `register` without its extra.
    """
    warnings = _patient_warnings(a, b, force_patient) + _space_warnings(a, b, register)
    identity = np.eye(4)
    best, transform, inverse_error = _fit(a, b, grid, identity), identity, None
    by_headers = best.mutual_information
    if register:
        transform, inverse_error = register_rigid(a, b)
        best = _fit(a, b, grid, transform)
        warnings.append("the volumes were registered automatically: look at the alignment before trusting the result")
    if best.coverage < NO_COVERAGE:
        raise VolumeError(
            f"{b.source.path}: shows nothing of the head in {a.source.path}: their headers put them in different "
            "places; check that they belong together, or try --register"
        )
    warnings += _fit_warnings(best, a, b)
    for message in warnings:
        warn(message)
    return Alignment(
        best.a, best.b, grid, transform, register, best.coverage, best.overlap, best.mutual_information,
        by_headers, inverse_error, tuple(warnings),
    )  # fmt: skip


def _fit(a: Volume, b: Volume, grid: Literal["a", "b"], transform: Affine) -> _Fit:
    """Both volumes on one grid, and the measures of their fit, which are taken on that grid."""
    if grid == "a":
        a_here, (b_here, both) = a, resample(b, a.affine, a.shape, transform)
    else:
        (a_here, both), b_here = resample(a, b.affine, b.shape, np.asarray(np.linalg.inv(transform))), b
    head, tracer = foreground(a_here) & both, foreground(b_here) & both
    smaller = min(np.count_nonzero(head), np.count_nonzero(tracer))
    overlap = np.count_nonzero(head & tracer) / smaller if smaller else 0.0
    information = mutual_information(luminance(a_here), luminance(b_here), both)
    return _Fit(a_here, b_here, _coverage(a, b, transform), float(overlap), information)


def _coverage(a: Volume, b: Volume, transform: Affine) -> float:
    """Share of a's head that lies within b's grid."""
    head = foreground(a)
    step = max(1, head.size // _POINTS)
    voxels = np.stack(np.unravel_index(np.flatnonzero(head.reshape(-1)[::step]) * step, a.shape), axis=-1)
    if len(voxels) == 0:
        raise VolumeError(f"{a.source.path}: shows nothing: all of its values are alike; check the file")
    onto = np.linalg.inv(b.affine) @ transform @ a.affine
    at = voxels @ onto[:3, :3].T + onto[:3, 3]
    inside = ((at >= -0.5) & (at <= np.array(b.shape) - 0.5)).all(axis=1)
    return float(inside.mean())


def _patient_warnings(a: Volume, b: Volume, force: bool) -> list[str]:
    """Compare what both headers say of the patient. The values stay out of all messages."""
    if a.link is None or b.link is None:
        return []
    one, other = a.link.identity, b.link.identity
    different = [keyword for keyword in one if keyword in other and one[keyword] != other[keyword]]
    if not different:
        return []
    elements = f"{', '.join(different)} {'differ' if len(different) > 1 else 'differs'}"
    message = Message(
        "{a} and {b} name different patients ({elements})", a=a.source.path, b=b.source.path, elements=elements
    )
    if not force:
        raise VolumeError(f"{message}; give two volumes of one patient, or --force-patient if they are")
    return [message]


def _space_warnings(a: Volume, b: Volume, register: bool) -> list[str]:
    known = a.frame_of_reference and b.frame_of_reference
    if register or not known or a.frame_of_reference == b.frame_of_reference:
        return []
    return [
        Message(
            "{a} and {b} have different frames of reference, so their headers do not say how they lie to each other: "
            "look at the alignment, or try --register",
            a=a.source.path,
            b=b.source.path,
        )
    ]


def _fit_warnings(fit: _Fit, a: Volume, b: Volume) -> list[str]:
    names = {"a": a.source.path, "b": b.source.path}
    warnings: list[str] = []
    if fit.coverage < LOW_COVERAGE:
        warnings.append(Message(f"{{b}}: covers only {fit.coverage:.0%} of the head in {{a}}", **names))
    if fit.overlap < LOW_OVERLAP:
        warnings.append(
            Message(
                f"{{b}} and {{a}}: only {fit.overlap:.0%} of the smaller foreground lies in the larger: they may not "
                "belong together, or not be aligned; look at the alignment, or try --register",
                **names,
            )
        )
    return warnings
