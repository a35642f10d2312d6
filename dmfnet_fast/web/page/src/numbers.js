/** Arithmetic as numpy does it. */

/** The nearest integer; halves go to the even one, as in IEEE 754 and numpy's `rint`. */
export function rint(x) {
  const low = Math.floor(x);
  const part = x - low;
  if (part < 0.5) return low;
  if (part > 0.5) return low + 1;
  return low % 2 === 0 ? low : low + 1;
}

export const clip = (x, low, high) => Math.min(Math.max(x, low), high);

/**
 * Percentiles with linear interpolation, as numpy's default.
 *
 * @param {ArrayLike<number>} values
 * @param {number[]} percents each 0 to 100
 */
export function percentiles(values, percents) {
  const sorted = Float64Array.from(values).sort();
  return percents.map((percent) => {
    const at = (percent / 100) * (sorted.length - 1);
    const low = Math.floor(at);
    const high = Math.min(low + 1, sorted.length - 1);
    return sorted[low] + (sorted[high] - sorted[low]) * (at - low);
  });
}

/** The least and the greatest value; NaN is passed over. */
export function extent(values) {
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return [low, high];
}
