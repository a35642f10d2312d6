/** Averages a volume before it is sampled on a coarser grid; `dmfnet_fast.volumes.resampling` in JavaScript. */

import { spacing } from "./affine.js";

// Gaussians end this many standard deviations from their center.
const TRUNCATE = 4;
const ORDERS = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

/**
 * How far to average a volume along each of its axes, so that its voxels become as wide as those of another grid.
 *
 * @param {number[]} onto takes indices of the other grid to those of the volume
 * @returns {number[]} standard deviations in voxels, 0 along an axis that is not finer than the other grid
 */
function widths(volume, onto) {
  const steps = spacing(volume.affine);
  const along = (axis, other) => onto[4 * axis + other] * steps[axis]; // in mm
  const lengths = [0, 1, 2].map((other) => Math.hypot(along(0, other), along(1, other), along(2, other)));
  // Each axis is compared with the one of the other grid that has the most similar direction.
  const similar = (axis, other) => Math.round((1e6 * Math.abs(along(axis, other))) / lengths[other]);
  const fit = (order) => similar(0, order[0]) + similar(1, order[1]) + similar(2, order[2]);
  const best = ORDERS.reduce((one, other) => (fit(other) > fit(one) ? other : one));
  return steps.map((step, axis) => Math.sqrt(Math.max((lengths[best[axis]] / step) ** 2 - 1, 0) / (8 * Math.log(2))));
}

/** A sampled Gaussian from its center outwards; with its other half, its sum is 1. */
function halfGaussian(width) {
  if (width === 0) return [1];
  const half = Array.from({ length: Math.floor(TRUNCATE * width + 0.5) + 1 }, (_, n) => Math.exp(-0.5 * (n / width) ** 2));
  const sum = 2 * half.reduce((all, value) => all + value) - half[0];
  return half.map((value) => value / sum);
}

/**
 * A volume's values, averaged by a Gaussian along each axis on which it is finer than another grid.
 *
 * @returns {Float32Array | Uint8Array} the volume's own values if there is nothing to average
 */
export function averaged(volume, onto) {
  const { shape, channels, values } = volume;
  const kernels = widths(volume, onto).map(halfGaussian);
  if (kernels.every(({ length }) => length === 1)) return values;
  const result = Float32Array.from(values);
  kernels.forEach((kernel, axis) => {
    if (kernel.length === 1) return;
    const inner = shape.slice(axis + 1).reduce((all, size) => all * size, channels);
    const outer = shape.slice(0, axis).reduce((all, size) => all * size, 1);
    for (let n = 0; n < outer; n++) averageLines(result, n * shape[axis] * inner, shape[axis], inner, kernel);
  });
  return result;
}

/** Averages all lines of `size` values, `inner` apart, that begin at `start` and behind it; borders are repeated. */
function averageLines(values, start, size, inner, half) {
  const radius = half.length - 1;
  const line = new Float64Array(size + 2 * radius);
  for (let first = start; first < start + inner; first++) {
    for (let n = 0; n < line.length; n++) line[n] = values[first + Math.min(Math.max(n - radius, 0), size - 1) * inner];
    for (let n = 0; n < size; n++) {
      let sum = half[0] * line[n + radius];
      for (let distance = 1; distance <= radius; distance++) {
        sum += half[distance] * (line[n + radius - distance] + line[n + radius + distance]);
      }
      values[first + n * inner] = sum;
    }
  }
}
