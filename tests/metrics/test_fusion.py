"""The fusion metrics against independent implementations, based on scipy and scikit-image."""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage, signal, stats
from skimage.measure import shannon_entropy
from skimage.metrics import structural_similarity

from dmfnet_fast.metrics.fusion import METRICS, fusion_metrics
from dmfnet_fast.phantom import make_phantom
from train.losses import hybrid_loss

Float = NDArray[np.float64]
Triple = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]


def _jpeg(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=80)
    return np.asarray(Image.open(file))


@pytest.fixture(scope="module", params=["maximum", "mean, JPEG", "noise", "inverted"])
def triple(request: pytest.FixtureRequest) -> Triple:
    """f, a and b, not square: two modalities of a phantom, and a possible fused image."""
    head = make_phantom(3, 128)
    a, b = head.mri[10:110], head.ct[10:110]
    made = {
        "maximum": np.maximum(a, b),
        "mean, JPEG": _jpeg(((a.astype(int) + b) // 2).astype(np.uint8)),
        "noise": np.random.default_rng(0).integers(0, 256, a.shape, dtype=np.uint8),
        "inverted": 255 - np.maximum(a, b),
    }
    return made[request.param], a, b


def _mi(x: Float, y: Float) -> float:
    joint = np.histogram2d(x.ravel(), y.ravel(), bins=256, range=((0, 256), (0, 256)))[0]
    # I(x; y) = H(x) + H(y) - H(x, y); scipy's entropy is in nats.
    return float(stats.entropy(joint.sum(0)) + stats.entropy(joint.sum(1)) - stats.entropy(joint.ravel()))


def _r(x: Float, y: Float) -> float:
    return float(np.corrcoef(x.ravel(), y.ravel())[0, 1])


def _vif(reference: Float, distorted: Float) -> float:
    """VIF after Sheikh and Bovik's own program, with scipy's two-dimensional convolution."""
    num = den = 0.0
    for scale in range(1, 5):
        n = 2 ** (4 - scale + 1) + 1
        grid = np.mgrid[-(n // 2) : n // 2 + 1, -(n // 2) : n // 2 + 1]
        window = np.exp(-(grid**2).sum(0) / (2 * (n / 5.0) ** 2))
        window /= window.sum()

        def blur(z: Float, window: Float = window) -> Float:
            result: Float = signal.convolve2d(z, window, mode="valid")
            return result

        if scale > 1:
            reference, distorted = blur(reference)[::2, ::2], blur(distorted)[::2, ::2]
        mu1, mu2 = blur(reference), blur(distorted)
        s1 = np.maximum(blur(reference**2) - mu1**2, 0)
        s2 = np.maximum(blur(distorted**2) - mu2**2, 0)
        s12 = blur(reference * distorted) - mu1 * mu2
        g = s12 / (s1 + 1e-10)
        sv = s2 - g * s12
        g[s1 < 1e-10], sv[s1 < 1e-10], s1[s1 < 1e-10] = 0, s2[s1 < 1e-10], 0
        g[s2 < 1e-10], sv[s2 < 1e-10] = 0, 0
        sv[g < 0], g[g < 0] = s2[g < 0], 0
        sv[sv <= 1e-10] = 1e-10
        num += np.log10(1 + g**2 * s1 / (sv + 2)).sum()
        den += np.log10(1 + s1 / 2).sum()
    return num / den


def _qabf(f: Float, a: Float, b: Float) -> float:
    """Qabf, computed pixel by pixel."""
    edges = []
    for z in (f, a, b):
        x, y = (ndimage.sobel(z, axis=axis, mode="constant") for axis in (1, 0))
        edges.append((np.hypot(x, y), x, -y))

    def angle(x: float, y: float) -> float:
        return math.pi / 2 if x == 0 else math.atan(y / x)

    total = weight = 0.0
    for place in np.ndindex(f.shape):
        gf, af = edges[0][0][place], angle(edges[0][1][place], edges[0][2][place])
        for strength, x, y in edges[1:]:
            gs = strength[place]
            ratio = gf if gs == gf else min(gs, gf) / max(gs, gf)
            agreement = 1 - abs(angle(x[place], y[place]) - af) / (math.pi / 2)
            q = 0.9994 / (1 + math.exp(-15 * (ratio - 0.5))) * 0.9879 / (1 + math.exp(-22 * (agreement - 0.8)))
            total, weight = total + q * gs, weight + gs
    return total / weight


def _ag(f: Float) -> float:
    padded = np.pad(f, 1, mode="edge")
    gx, gy = padded[1:-1, 2:] - padded[1:-1, :-2], padded[2:, 1:-1] - padded[:-2, 1:-1]
    gx[:, 1:-1] /= 2
    gy[1:-1] /= 2
    return float(np.sqrt((gx**2 + gy**2) / 2).mean())


def _loss(f: Float, a: Float, b: Float) -> float:
    torch = pytest.importorskip("torch")
    return float(hybrid_loss(*(torch.from_numpy(z / 127.5 - 1)[None, None] for z in (f, a, b))))


def _invented(f: Float, a: Float, b: Float) -> float:
    high = ndimage.maximum_filter(np.maximum(a, b), 3, mode="nearest")
    low = ndimage.minimum_filter(np.minimum(a, b), 3, mode="nearest")
    return 100 * float(np.mean((np.maximum(f - high, low - f) > 8)[high > 8]))


def _specks(f: Float, a: Float, b: Float) -> float:
    """Specks, computed by correlation with second-difference kernels in four directions."""
    lines = [np.zeros((3, 3)) for _ in range(4)]
    for line, ends in zip(lines, (((1, 0), (1, 2)), ((0, 1), (2, 1)), ((0, 0), (2, 2)), ((0, 2), (2, 0))), strict=True):
        line[1, 1] = 1
        for end in ends:
            line[end] -= 0.5

    def heights(z: Float, sign: int) -> Float:
        return np.maximum(np.min([ndimage.correlate(sign * z, line, mode="nearest") for line in lines], 0), 0)

    total = np.zeros_like(f)
    for sign in (1, -1):
        own = ndimage.maximum_filter(np.maximum(heights(a, sign), heights(b, sign)), 3, mode="nearest")
        total += np.maximum(heights(f, sign) - own, 0)
    return float(total[ndimage.maximum_filter(np.maximum(a, b), 3, mode="nearest") > 8].mean())


INDEPENDENT: dict[str, Callable[[Float, Float, Float], float]] = {
    "EN": lambda f, _a, _b: float(shannon_entropy(f.astype(np.uint8))),
    "SD": lambda f, _a, _b: math.sqrt(float((f**2).mean() - f.mean() ** 2)),
    "SF": lambda f, _a, _b: math.hypot(
        *(math.sqrt(float(((z[1:] - z[:-1]) ** 2).sum()) / (z[1:].size)) for z in (f, f.T))
    ),
    "AG": lambda f, _a, _b: _ag(f),
    "MI": lambda f, a, b: _mi(f, a) + _mi(f, b),
    "SCD": lambda f, a, b: _r(a, f - b) + _r(b, f - a),
    "VIFF": lambda f, a, b: _vif(a, f) + _vif(b, f),
    "Qabf": _qabf,
    "SSIM": lambda f, a, b: sum(structural_similarity(z, f, data_range=255) for z in (a, b)),
    "PSNR": lambda f, a, b: 20 * math.log10(f.max()) - 10 * math.log10((((f - a) ** 2 + (f - b) ** 2) / 2).mean()),
    "CC": lambda f, a, b: (_r(f, a) + _r(f, b)) / 2,
    "objective": _loss,
    "invented": _invented,
    "specks": _specks,
}


@pytest.mark.parametrize("name", [metric.name for metric in METRICS])
def test_against_an_independent_implementation(name: str, triple: Triple) -> None:
    (metric,) = (metric for metric in METRICS if metric.name == name)
    expected = INDEPENDENT[name](*(z.astype(np.float64) for z in triple))
    assert metric.of(*triple) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_all_metrics_by_name(triple: Triple) -> None:
    assert fusion_metrics(*triple) == {metric.name: metric.of(*triple) for metric in METRICS}


def test_flat_images() -> None:
    """Every metric is defined for black images, which a failed fusion may give; only PSNR is infinite."""
    black = np.zeros((64, 64), np.uint8)
    head = make_phantom(0, 64).mri
    of_black = fusion_metrics(black, black, black)
    assert of_black.pop("PSNR") == math.inf
    assert of_black == {
        **dict.fromkeys(("EN", "SD", "SF", "AG", "MI", "SCD", "Qabf", "CC", "objective", "invented", "specks"), 0.0),
        **{"VIFF": 2.0, "SSIM": 2.0},
    }
    of_head = fusion_metrics(black, head, black)
    assert of_head["PSNR"] == -math.inf
    assert of_head["Qabf"] == pytest.approx(0, abs=1e-3)
    assert all(math.isfinite(value) for name, value in of_head.items() if name != "PSNR")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((64, 64, 3)), r"a \(64, 64, 3\): must be \(H, W\), at least 47x47"),
        (np.zeros((64, 46)), r"a \(64, 46\): must be \(H, W\), at least 47x47"),
        (np.full((64, 64), np.nan), r"a: must have values in 0\.\.255"),
        (np.full((64, 64), -1.0), r"a: must have values in 0\.\.255"),
        (np.full((64, 64), 256, np.uint16), r"a: must have values in 0\.\.255"),
    ],
)
def test_invalid_images(image: np.ndarray, message: str) -> None:
    fused = np.zeros((64, 64), np.uint8)
    with pytest.raises(ValueError, match=message):
        fusion_metrics(fused, image, fused)


def test_sizes_must_agree() -> None:
    a, b = np.zeros((64, 64), np.uint8), np.zeros((64, 65), np.uint8)
    with pytest.raises(ValueError, match="must be of one size"):
        fusion_metrics(a, a, b)
