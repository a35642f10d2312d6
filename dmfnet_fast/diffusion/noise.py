"""Standard normal noise that is the same on every platform and with every numpy version.

numpy guarantees the raw 64-bit output of the counter-based generator Philox, but not the output of its distributions,
and `log` may differ in the last bit between platforms. The raw integers are therefore converted to normal deviates
here, by the inverse of the normal distribution function (Wichura 1988, algorithm AS 241, PPND16, relative accuracy
about 1e-16). It uses only additions, products, quotients and square roots, which IEEE 754 rounds correctly.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dmfnet_fast.diffusion.schedule import FUSION_TIMESTEPS

_CENTER_NUMERATOR = (
    3.3871328727963666080e0, 1.3314166789178437745e2, 1.9715909503065514427e3, 1.3731693765509461125e4,
    4.5921953931549871457e4, 6.7265770927008700853e4, 3.3430575583588128105e4, 2.5090809287301226727e3,
)  # fmt: skip
_CENTER_DENOMINATOR = (
    1.0, 4.2313330701600911252e1, 6.8718700749205790830e2, 5.3941960214247511077e3,
    2.1213794301586595867e4, 3.9307895800092710610e4, 2.8729085735721942674e4, 5.2264952788528545610e3,
)  # fmt: skip
_TAIL_NUMERATOR = (
    1.42343711074968357734e0, 4.63033784615654529590e0, 5.76949722146069140550e0, 3.64784832476320460504e0,
    1.27045825245236838258e0, 2.41780725177450611770e-1, 2.27238449892691845833e-2, 7.74545014278341407640e-4,
)  # fmt: skip
_TAIL_DENOMINATOR = (
    1.0, 2.05319162663775882187e0, 1.67638483018380384940e0, 6.89767334985100004550e-1,
    1.48103976427480074590e-1, 1.51986665636164571966e-2, 5.47593808499534494600e-4, 1.05075007164441684324e-9,
)  # fmt: skip
_FAR_TAIL_NUMERATOR = (
    6.65790464350110377720e0, 5.46378491116411436990e0, 1.78482653991729133580e0, 2.96560571828504891230e-1,
    2.65321895265761230930e-2, 1.24266094738807843860e-3, 2.71155556874348757815e-5, 2.01033439929228813265e-7,
)  # fmt: skip
_FAR_TAIL_DENOMINATOR = (
    1.0, 5.99832206555887937690e-1, 1.36929880922735805310e-1, 1.48753612908506148525e-2,
    7.86869131145613259100e-4, 1.84631831751005468180e-5, 1.42151175831644588870e-7, 2.04426310338993978564e-15,
)  # fmt: skip

_LN_2 = 0.6931471805599453
_SQRT_HALF = 0.7071067811865476


def _polynomial(coefficients: tuple[float, ...], x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Horner's rule with separate multiplications and additions, as fused ones would round differently."""
    result = np.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        result *= x
        result += coefficient
    return result


def _log(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Natural logarithm to about 1e-16, by ln x = e ln 2 + 2 artanh((m - 1) / (m + 1))."""
    mantissa, exponent = np.frexp(x)
    small = mantissa < _SQRT_HALF
    mantissa = np.where(small, 2.0 * mantissa, mantissa)
    exponent = np.where(small, exponent - 1, exponent).astype(np.float64)
    z = (mantissa - 1.0) / (mantissa + 1.0)
    # |z| <= 0.1716, so the first omitted term, z^22 / 23, is below 1e-18.
    series = _polynomial(tuple(1.0 / (2 * k + 1) for k in range(11)), z * z)
    return exponent * _LN_2 + 2.0 * z * series


def inverse_normal_cdf(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """The standard normal quantile of each probability in `p`, 0 < p < 1 (AS 241, PPND16)."""
    q = p - 0.5
    r = 0.180625 - q * q
    result = q * _polynomial(_CENTER_NUMERATOR, r) / _polynomial(_CENTER_DENOMINATOR, r)

    outside = np.abs(q) > 0.425
    tail = np.sqrt(-_log(np.minimum(p[outside], 1.0 - p[outside])))
    near, far = tail - 1.6, tail - 5.0
    value = np.where(
        tail <= 5.0,
        _polynomial(_TAIL_NUMERATOR, near) / _polynomial(_TAIL_DENOMINATOR, near),
        _polynomial(_FAR_TAIL_NUMERATOR, far) / _polynomial(_FAR_TAIL_DENOMINATOR, far),
    )
    result[outside] = np.where(q[outside] < 0, -value, value)
    return result


@lru_cache(maxsize=4)
def fusion_noise(seed: int, height: int, width: int, timesteps: int = len(FUSION_TIMESTEPS)) -> NDArray[np.float32]:
    """The network's noise input for one image size.

    Args:
        seed: 0 to 2^64 - 1.
        height, width: size of the network's input, in pixels.
        timesteps: number of the network's timesteps; the noise for fewer timesteps is a prefix of that for more.

    Returns:
        Read-only float32 array (timesteps, 2, height, width), indexed by timestep and image (a or b), standard normal.
        The same arguments give the same numbers on every platform. Results are cached.

    Raises:
        ValueError: `seed` is out of range.
    """
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed {seed}: must lie between 0 and 2^64 - 1")
    shape = (timesteps, 2, height, width)
    raw = np.random.Philox(key=seed).random_raw(int(np.prod(shape)))
    # The midpoint of one of 2^52 cells, chosen by the upper 52 bits: exact in float64 and never 0 or 1.
    probability = ((raw >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    noise = inverse_normal_cdf(probability).astype(np.float32).reshape(shape)
    noise.flags.writeable = False
    return noise
