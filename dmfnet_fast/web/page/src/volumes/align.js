/** Two volumes on the grid of one of them, by what their headers say of their place; `dmfnet_fast.volumes.alignment`. */

import { UserError } from "../errors.js";
import { clip, extent, rint } from "../numbers.js";
import { inverse, product } from "./affine.js";
import { foregroundThreshold, luminanceAt } from "./measures.js";

// Below these shares, two volumes may not belong together.
const LOW_COVERAGE = 0.8;
const LOW_OVERLAP = 0.85;
// Below this, there is nothing to fuse.
const NO_COVERAGE = 0.01;
const MOST_POINTS = 200_000;

/** What lies around a volume: air. */
function background(volume) {
  if (volume.channels === 3) return 0;
  return volume.units === "HU" ? -1000 : Math.min(0, extent(volume.values)[0]);
}

export class Resampler {
  /** Takes a volume's values, linearly interpolated, on another grid: an affine and [slices, rows, columns]. */
  constructor(volume, affine, shape) {
    this.volume = volume;
    this.shape = shape;
    this.onto = product(inverse(volume.affine), affine);
    this.fill = background(volume);
  }

  /** @returns {{values: Float32Array, inside: Uint8Array}} a slice, and where the volume reaches */
  slice(number) {
    const { onto, volume, shape } = this;
    const { values, channels } = volume;
    const [, rows, columns] = shape;
    const result = new Float32Array(rows * columns * channels).fill(this.fill);
    const inside = new Uint8Array(rows * columns);
    const [, height, width] = volume.shape;
    const low = [0, 0, 0];
    const high = [0, 0, 0];
    const part = [0, 0, 0];
    for (let row = 0; row < rows; row++) {
      for (let column = 0; column < columns; column++) {
        let reached = true;
        for (let axis = 0; axis < 3; axis++) {
          const size = volume.shape[axis];
          const m = 4 * axis;
          const at = onto[m + 1] * row + onto[m + 2] * column + onto[m] * number + onto[m + 3];
          reached &&= at >= -0.5 - 1e-6 && at <= size - 0.5 + 1e-6;
          let index = clip(at, 0, size - 1);
          // Indices that should be whole are, in spite of rounding in the affines.
          if (Math.abs(index - rint(index)) < 1e-6) index = rint(index);
          low[axis] = Math.min(Math.trunc(index), Math.max(size - 2, 0));
          high[axis] = Math.min(low[axis] + 1, size - 1);
          part[axis] = Math.fround(index - low[axis]);
        }
        if (!reached) continue;
        const n = row * columns + column;
        inside[n] = 1;
        const [s, r, c] = part;
        const rest = part.map((weight) => Math.fround(1 - weight));
        for (let channel = 0; channel < channels; channel++) {
          const value = (z, y, x) => values[((z * height + y) * width + x) * channels + channel];
          const line = (z, y) => Math.fround(Math.fround(value(z, y, low[2]) * rest[2]) + Math.fround(value(z, y, high[2]) * c));
          const plane = (z) => Math.fround(Math.fround(line(z, low[1]) * rest[1]) + Math.fround(line(z, high[1]) * r));
          const all = Math.fround(Math.fround(plane(low[0]) * rest[0]) + Math.fround(plane(high[0]) * s));
          result[n * channels + channel] = channels === 3 ? rint(all) : all;
        }
      }
    }
    return { values: result, inside };
  }
}

/** Share of a's head that lies within b's grid. */
function coverage(a, b) {
  const threshold = foregroundThreshold(a);
  const [, rows, columns] = a.shape;
  const count = a.values.length / a.channels;
  const head = [];
  for (let n = 0; n < count; n++) if (luminanceAt(a.values, a.channels, n) > threshold) head.push(n);
  const onto = product(inverse(b.affine), a.affine);
  const step = Math.max(1, Math.floor(head.length / MOST_POINTS));
  let all = 0;
  let inside = 0;
  for (let k = 0; k < head.length; k += step) {
    const n = head[k];
    const voxel = [Math.floor(n / (rows * columns)), Math.floor(n / columns) % rows, n % columns];
    all += 1;
    const within = [0, 1, 2].every((axis) => {
      const m = 4 * axis;
      const at = onto[m] * voxel[0] + onto[m + 1] * voxel[1] + onto[m + 2] * voxel[2] + onto[m + 3];
      return at >= -0.5 && at <= b.shape[axis] - 0.5;
    });
    if (within) inside += 1;
  }
  return all ? inside / all : 0;
}

/** Share of the smaller of both foregrounds that lies in the other one, where both volumes reach. */
function overlap(a, b, slicesA, slicesB) {
  const [thresholdA, thresholdB] = [foregroundThreshold(a), foregroundThreshold(b)];
  let [ofA, ofB, ofBoth] = [0, 0, 0];
  const [slices, rows, columns] = slicesA.shape;
  for (let number = 0; number < slices; number++) {
    const one = slicesA.slice(number);
    const other = slicesB.slice(number);
    for (let n = 0; n < rows * columns; n++) {
      if (!one.inside[n] || !other.inside[n]) continue;
      const inA = luminanceAt(one.values, a.channels, n) > thresholdA;
      const inB = luminanceAt(other.values, b.channels, n) > thresholdB;
      ofA += inA;
      ofB += inB;
      ofBoth += inA && inB;
    }
  }
  const smaller = Math.min(ofA, ofB);
  return smaller ? ofBoth / smaller : 0;
}

/**
 * Aligns two volumes by their headers.
 *
 * @param {"a" | "b"} grid whose voxels and slices to take
 * @returns {{a: Resampler, b: Resampler, shape: number[], affine: number[], coverage: number, overlap: number,
 *   warnings: string[]}}
 */
export function align(a, b, grid) {
  const { affine, shape } = grid === "a" ? a : b;
  const onA = new Resampler(a, affine, shape);
  const onB = new Resampler(b, affine, shape);
  const covered = coverage(a, b);
  if (covered < NO_COVERAGE) {
    throw new UserError(
      `${b.name}: shows nothing of the head in ${a.name}: their headers put them in different places; check that they ` +
        "belong together, or register them first",
    );
  }
  const shared = overlap(a, b, onA, onB);
  const percent = (share) => `${Math.round(100 * share)}%`;
  const warnings = [];
  if (covered < LOW_COVERAGE) warnings.push(`${b.name} covers only ${percent(covered)} of the head in ${a.name}`);
  if (shared < LOW_OVERLAP) {
    warnings.push(
      `${a.name} and ${b.name}: ${percent(shared)} of the smaller lies within the larger: they may not belong together, ` +
        "or not be aligned; look at the alignment",
    );
  }
  return { a: onA, b: onB, shape, affine, coverage: covered, overlap: shared, warnings };
}
