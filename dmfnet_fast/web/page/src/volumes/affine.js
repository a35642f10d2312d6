/** 4x4 matrices as arrays of 16 numbers, row by row. */

export const IDENTITY = [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1];

export function product(a, b) {
  const result = new Array(16).fill(0);
  for (let row = 0; row < 4; row++) {
    for (let column = 0; column < 4; column++) {
      for (let k = 0; k < 4; k++) result[4 * row + column] += a[4 * row + k] * b[4 * k + column];
    }
  }
  return result;
}

/** The inverse of a matrix whose last row is 0 0 0 1. */
export function inverse(m) {
  const [a, b, c, x, d, e, f, y, g, h, i, z] = m;
  const determinant = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g);
  const r = [
    e * i - f * h, c * h - b * i, b * f - c * e, //
    f * g - d * i, a * i - c * g, c * d - a * f, //
    d * h - e * g, b * g - a * h, a * e - b * d, //
  ].map((value) => value / determinant);
  const result = [];
  for (let row = 0; row < 3; row++) {
    const line = r.slice(3 * row, 3 * row + 3);
    result.push(...line, -(line[0] * x + line[1] * y + line[2] * z));
  }
  return [...result, 0, 0, 0, 1];
}

/** Turns NIfTI's (column, row, slice) to RAS into (slice, row, column) to LPS, and back: it is its own inverse. */
export function turned(m) {
  const result = [];
  for (let row = 0; row < 4; row++) {
    const sign = row < 2 ? -1 : 1;
    result.push(...[2, 1, 0, 3].map((column) => sign * m[4 * row + column]));
  }
  return result;
}

/** Lengths of the first three columns: the distance in mm between slices, rows and columns. */
export const spacing = (m) => [0, 1, 2].map((column) => Math.hypot(m[column], m[4 + column], m[8 + column]));

/** What is wrong with a grid, or null: its axes must be perpendicular, its spacing that of a scan. */
export function fault(m) {
  if (!m.every(Number.isFinite)) return "has no usable position in space; convert it from DICOM again";
  const lengths = spacing(m);
  if (!lengths.every((length) => length > 0.01 && length < 100)) {
    return `has voxels of ${lengths.map((mm) => mm.toPrecision(4)).join(" x ")} mm, which no head is scanned with`;
  }
  for (const [one, other] of [[0, 1], [0, 2], [1, 2]]) {
    const cosine = [0, 4, 8].reduce((sum, row) => sum + m[row + one] * m[row + other], 0) / (lengths[one] * lengths[other]);
    if (Math.abs(cosine) > 0.01) return "has axes that are not perpendicular; resample it onto a straight grid first";
  }
  return null;
}
