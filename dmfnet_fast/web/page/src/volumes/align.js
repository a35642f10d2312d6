/** Two volumes on the grid of one of them, by what their headers say of their place; `dmfnet_fast.volumes.alignment`. */

import { UserError } from "../errors.js";
import { clip, extent, rint } from "../numbers.js";
import { inverse, product } from "./affine.js";
import { averaged } from "./average.js";
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

/**
 * Takes a volume's values, averaged where they are finer than another grid and linearly interpolated, on that grid.
 *
 * @param {number[]} affine (slice, row, column) of the other grid to mm
 * @param {number[]} shape slices, rows and columns of the other grid
 * @returns {{values: Float32Array | Uint8Array, inside: Uint8Array}} the values, and 1 where the volume reaches
 */
export function resampled(volume, affine, shape) {
  const onto = product(inverse(volume.affine), affine);
  const [slices, rows, columns] = shape;
  const { channels } = volume;
  const values = averaged(volume, onto);
  const result = new volume.values.constructor(slices * rows * columns * channels).fill(background(volume));
  const inside = new Uint8Array(slices * rows * columns);
  const sizes = volume.shape;
  const strides = [sizes[1] * sizes[2] * channels, sizes[2] * channels, channels];
  const start = [0, 0, 0];
  const step = [0, 0, 0];
  const part = [0, 0, 0];
  const rest = [0, 0, 0];
  let n = 0;
  for (let slice = 0; slice < slices; slice++) {
    for (let row = 0; row < rows; row++) {
      for (let column = 0; column < columns; column++, n++) {
        let reached = true;
        for (let axis = 0; axis < 3; axis++) {
          const size = sizes[axis];
          const m = 4 * axis;
          const at = onto[m + 1] * row + onto[m + 2] * column + onto[m] * slice + onto[m + 3];
          reached &&= at >= -0.5 - 1e-6 && at <= size - 0.5 + 1e-6;
          let index = clip(at, 0, size - 1);
          // Indices that should be whole are, in spite of rounding in the affines.
          const near = Math.round(index);
          if (Math.abs(index - near) < 1e-6) index = near;
          const low = Math.min(Math.trunc(index), Math.max(size - 2, 0));
          start[axis] = low * strides[axis];
          step[axis] = size > 1 ? strides[axis] : 0;
          part[axis] = Math.fround(index - low);
          rest[axis] = Math.fround(1 - part[axis]);
        }
        if (!reached) continue;
        inside[n] = 1;
        const from = start[0] + start[1] + start[2];
        for (let channel = 0; channel < channels; channel++) {
          const base = from + channel;
          const near = plane(values, base, step, part, rest);
          const all = part[0] === 0 ? near : mixed(near, plane(values, base + step[0], step, part, rest), part[0], rest[0]);
          result[n * channels + channel] = channels === 3 ? rint(all) : all;
        }
      }
    }
  }
  return { values: result, inside };
}

// Rounded to float32 after every operation, as numpy does.
const mixed = (low, high, part, rest) => Math.fround(Math.fround(low * rest) + Math.fround(high * part));

function plane(values, at, step, part, rest) {
  const near = mixed(values[at], values[at + step[2]], part[2], rest[2]);
  if (part[1] === 0) return near;
  return mixed(near, mixed(values[at + step[1]], values[at + step[1] + step[2]], part[2], rest[2]), part[1], rest[1]);
}

/** Share of a's head that lies within b's grid. */
function coverage(a, b) {
  const threshold = foregroundThreshold(a);
  const [, rows, columns] = a.shape;
  const count = a.values.length / a.channels;
  const inHead = (n) => luminanceAt(a.values, a.channels, n) > threshold;
  let size = 0;
  for (let n = 0; n < count; n++) size += inHead(n);
  const onto = product(inverse(b.affine), a.affine);
  const step = Math.max(1, Math.floor(size / MOST_POINTS));
  let found = 0;
  let all = 0;
  let inside = 0;
  for (let n = 0; n < count; n++) {
    if (!inHead(n) || found++ % step !== 0) continue;
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
function overlap(a, b) {
  const [thresholdA, thresholdB] = [foregroundThreshold(a), foregroundThreshold(b)];
  let [ofA, ofB, ofBoth] = [0, 0, 0];
  for (let n = 0; n < a.inside.length; n++) {
    if (!a.inside[n] || !b.inside[n]) continue;
    const inA = luminanceAt(a.values, a.channels, n) > thresholdA;
    const inB = luminanceAt(b.values, b.channels, n) > thresholdB;
    ofA += inA;
    ofB += inB;
    ofBoth += inA && inB;
  }
  const smaller = Math.min(ofA, ofB);
  return smaller ? ofBoth / smaller : 0;
}

/** What both headers say of the patient and of the space that positions are in. The values stay out of all messages. */
function compared(a, b) {
  const keywords = Object.keys(a.identity ?? {}).filter((key) => b.identity?.[key] && a.identity[key] !== b.identity[key]);
  if (keywords.length > 0) {
    throw new UserError(
      `${a.name} and ${b.name} name different patients (${keywords.join(", ")} differ); give two volumes of one patient`,
    );
  }
  const [one, other] = [a.frameOfReference, b.frameOfReference];
  if (!one || !other || one === other) return [];
  return [
    `${a.name} and ${b.name} have different frames of reference, so their headers do not say how they lie to each other: ` +
      "look at the alignment, or register them first",
  ];
}

/**
 * Aligns two volumes by their headers.
 *
 * @param {"a" | "b"} grid whose voxels and slices to take; this volume keeps its values
 * @returns {{a: object, b: object, shape: number[], affine: number[], coverage: number, overlap: number,
 *   warnings: string[]}} both volumes on the grid
 */
export function align(a, b, grid) {
  const warnings = compared(a, b);
  const { affine, shape } = grid === "a" ? a : b;
  const covered = coverage(a, b);
  if (covered < NO_COVERAGE) {
    throw new UserError(
      `${b.name}: shows nothing of the head in ${a.name}: their headers put them in different places; check that they ` +
        "belong together, or register them first",
    );
  }
  const here = (volume) => ({ ...volume, affine, shape, ...resampled(volume, affine, shape) });
  const whole = (volume) => ({ ...volume, inside: new Uint8Array(volume.values.length / volume.channels).fill(1) });
  const [onA, onB] = grid === "a" ? [whole(a), here(b)] : [here(a), whole(b)];
  const shared = overlap(onA, onB);
  const percent = (share) => `${Math.round(100 * share)}%`;
  if (covered < LOW_COVERAGE) warnings.push(`${b.name} covers only ${percent(covered)} of the head in ${a.name}`);
  if (shared < LOW_OVERLAP) {
    warnings.push(
      `${a.name} and ${b.name}: ${percent(shared)} of the smaller lies within the larger: they may not belong together, ` +
        "or not be aligned; look at the alignment",
    );
  }
  return { a: onA, b: onB, shape, affine, coverage: covered, overlap: shared, warnings };
}
