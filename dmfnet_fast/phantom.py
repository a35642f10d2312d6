"""Head phantoms: one synthetic head as MRI, CT, PET and SPECT would show it, in perfect registration.

They serve tests, demonstrations and calibration. They are drawings of plausible anatomy, not simulations of scanners.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Modality = Literal["CT", "PET", "SPECT"]
MODALITIES: tuple[Modality, ...] = ("CT", "PET", "SPECT")
Field = NDArray[np.float64]

# Gray levels of the tissues in each modality, 0..1, in the order of TISSUES: in the style of a T2-weighted MRI, a
# bone-windowed CT, and tracer uptake.
TISSUES = ("scalp", "bone", "fluid", "gray matter", "white matter", "deep nuclei", "lesion")
_MRI = np.array([0.62, 0.06, 0.92, 0.55, 0.36, 0.45, 0.80])
_CT = np.array([0.22, 1.00, 0.16, 0.34, 0.30, 0.35, 0.46])
_PET = np.array([0.12, 0.03, 0.04, 0.85, 0.34, 0.80, 1.00])
_SPECT = np.array([0.08, 0.02, 0.03, 0.80, 0.30, 0.72, 0.15])

# Color maps as rows of (position, red, green, blue): hot metal and rainbow.
_HOT = np.array([[0, 0, 0, 0], [0.35, 0.75, 0, 0], [0.7, 1, 0.65, 0], [1, 1, 1, 0.85]])
_RAINBOW = np.array(
    [[0, 0, 0, 0], [0.15, 0.1, 0, 0.5], [0.35, 0, 0.35, 1], [0.55, 0, 0.85, 0.45], [0.75, 1, 0.9, 0], [1, 1, 0.1, 0]]
)


@dataclass(frozen=True)
class Phantom:
    """The images of one head: `mri` and `ct` are (H, W) uint8, `pet` and `spect` (H, W, 3) uint8."""

    mri: NDArray[np.uint8]
    ct: NDArray[np.uint8]
    pet: NDArray[np.uint8]
    spect: NDArray[np.uint8]

    def other(self, modality: Modality) -> NDArray[np.uint8]:
        """The image of `modality`, which is fused with the MRI."""
        return {"CT": self.ct, "PET": self.pet, "SPECT": self.spect}[modality]


def _blur(image: Field, sigma: float) -> Field:
    """Gaussian blur by Fourier transform, which wraps around; this is harmless as heads do not touch the border."""
    fy, fx = np.fft.fftfreq(image.shape[0])[:, None], np.fft.rfftfreq(image.shape[1])[None]
    transfer = np.exp(-2 * (np.pi * sigma) ** 2 * (fy**2 + fx**2))
    return np.fft.irfft2(np.fft.rfft2(image) * transfer, s=image.shape)


def _smooth_noise(random: np.random.Generator, size: int, sigma: float) -> Field:
    noise = _blur(random.uniform(-1, 1, (size, size)), sigma)
    return noise / noise.std()


def _ellipse(x: Field, y: Field, center: tuple[float, float], radii: tuple[float, float], angle: float) -> Field:
    """Normalized distance from the center: below 1 inside the ellipse, 1 on it."""
    dx, dy = x - center[0], y - center[1]
    c, s = np.cos(angle), np.sin(angle)
    return np.hypot((c * dx + s * dy) / radii[0], (c * dy - s * dx) / radii[1])


def _inside(distance: Field, softness: float) -> Field:
    """1 where `distance` is below 1, 0 where it is above, with a linear ramp of width `softness` between."""
    return np.asarray(np.clip((1 - distance) / softness + 0.5, 0, 1))


def _tissues(random: np.random.Generator, size: int) -> Field:
    """The fraction of each tissue in every pixel, (len(TISSUES), size, size); they sum to 1 within the head."""
    axis = (np.arange(size) + 0.5) * 2 / size - 1
    y, x = np.meshgrid(axis, axis, indexing="ij")
    tilt = random.uniform(-0.12, 0.12)
    c, s = np.cos(tilt), np.sin(tilt)
    x, y = c * x + s * y + random.uniform(-0.04, 0.04), c * y - s * x + random.uniform(-0.04, 0.04)
    soft = 3.0 / size

    width, height = random.uniform(0.62, 0.70), random.uniform(0.78, 0.86)
    bumps = 0.012 * _smooth_noise(random, size, size / 16)
    head = _ellipse(x, y, (0, 0), (width, height), 0) + bumps
    skull_outer, skull_inner = head / 0.94, head / random.uniform(0.85, 0.88)
    # The cortex is folded: sulci dent its outer border, and its inner border follows at a distance.
    folds = _smooth_noise(random, size, size / 70)
    brain = head / 0.83 + 0.035 * np.maximum(folds, 0)
    white = head / 0.70 + 0.085 * folds + 0.05 * _smooth_noise(random, size, size / 40)
    fissure = np.hypot(x * 9 / (1 + 0.3 * np.abs(y)), 0) + 4 * (np.abs(y) < 0.35)
    sulci = _inside(np.abs(folds - 1.1) / 0.22, 0.8) * _inside(0.72 / np.maximum(head, 1e-6), 0.1)

    spread, size_v = random.uniform(0.10, 0.14), random.uniform(0.8, 1.25)
    ventricles = np.zeros_like(x)
    nuclei = np.zeros_like(x)
    for side in (-1, 1):
        horn = _ellipse(x, y, (side * spread, -0.12), (0.055 * size_v, 0.20 * size_v), side * 0.28)
        back = _ellipse(x, y, (side * (spread + 0.05), 0.26), (0.05 * size_v, 0.15 * size_v), -side * 0.35)
        ventricles = np.maximum(ventricles, np.maximum(_inside(horn, soft * 12), _inside(back, soft * 12)))
        thalamus = _ellipse(x, y, (side * 0.13, 0.10), (0.085, 0.12), side * 0.4)
        striatum = _ellipse(x, y, (side * 0.27, -0.04), (0.06, 0.17), side * 0.25)
        nuclei = np.maximum(nuclei, np.maximum(_inside(thalamus, 0.1), _inside(striatum, 0.1)))
    angle = random.uniform(0, 2 * np.pi)
    radius = random.uniform(0.07, 0.13)
    place = (0.38 * np.cos(angle) * width / 0.66, 0.42 * np.sin(angle))
    ragged = 0.18 * _smooth_noise(random, size, size / 50)
    lesion = _inside(_ellipse(x, y, place, (radius, radius * random.uniform(0.7, 1.3)), angle) + ragged, 0.25)

    # Layers are painted in order, each covering the ones before it.
    tissues = np.zeros((len(TISSUES), size, size))
    layers = (
        (0, _inside(head, soft * 2)),
        (1, _inside(skull_outer, soft * 2)),
        (2, _inside(skull_inner, soft * 2)),
        (3, _inside(brain, soft * 3)),
        (2, 0.8 * sulci * _inside(skull_inner, soft * 2)),
        (4, _inside(white, soft * 5)),
        (2, 0.8 * _inside(fissure / 0.12, 0.3) * _inside(skull_inner, soft * 2)),
        (5, nuclei),
        (2, ventricles),
        (6, lesion),
    )
    for index, cover in layers:
        tissues *= 1 - cover
        tissues[index] += cover
    return tissues


def _gray(field: Field) -> NDArray[np.uint8]:
    return np.rint(255 * field.clip(0, 1)).astype(np.uint8)


def _colors(field: Field, scale: Field) -> NDArray[np.uint8]:
    field = field.clip(0, 1)
    channels = [np.interp(field, scale[:, 0], scale[:, 1 + n]) for n in range(3)]
    return _gray(np.stack(channels, axis=-1))


def make_phantom(seed: int = 0, size: int = 256) -> Phantom:
    """Draw one head; the same arguments always give the same head.

    Args:
        seed: selects the head; heads differ in shape, folds, ventricles, tilt and lesion.
        size: width and height in pixels, at least 64.

    Raises:
        ValueError: `size` is below 64.
    """
    if size < 64:
        raise ValueError(f"size {size}: must be at least 64")
    random = np.random.default_rng(seed)
    tissues = _tissues(random, size)
    head = tissues.sum(axis=0)

    def appearance(levels: Field) -> Field:
        return np.asarray(np.tensordot(levels, tissues, axes=1))

    texture = 1 + 0.05 * _smooth_noise(random, size, 0.8) + 0.05 * _smooth_noise(random, size, size / 60)
    shading = 1 + 0.08 * _smooth_noise(random, size, size / 5)
    mri = _blur(appearance(_MRI) * texture * shading, 0.5)
    ct = _blur(appearance(_CT) + 0.012 * head * _smooth_noise(random, size, 0.7), 0.6)
    regions = 1 + 0.07 * _smooth_noise(random, size, size / 12)
    pet = _blur(appearance(_PET) * regions, size / 85)
    spect = _blur(appearance(_SPECT) * regions, size / 50)
    # Blurring by Fourier transform leaves ringing of 1e-16 in the air; a scanner's background is zero.
    return Phantom(
        mri=_gray(mri), ct=_gray(ct), pet=_colors(pet - 0.02, _HOT), spect=_colors(1.15 * (spect - 0.02), _RAINBOW)
    )
