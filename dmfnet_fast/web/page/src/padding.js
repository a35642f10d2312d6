/** Padding of images to sizes that the network accepts; `dmfnet_fast.images.padding` in JavaScript. */

export const STRIDE = 16;
export const SMALLEST = 64;

/** Where a padded axis takes its elements from: reflected at the ends, which are not repeated. */
function sources(size) {
  const margin = Math.max(SMALLEST - size, (STRIDE - (size % STRIDE)) % STRIDE);
  const before = Math.floor(margin / 2);
  const period = 2 * (size - 1);
  const from = new Int32Array(size + margin);
  for (let n = 0; n < from.length; n++) {
    const at = (((n - before) % period) + period) % period;
    from[n] = at < size ? at : period - at;
  }
  return { from, before };
}

/**
 * Pads planes of one size by reflection to multiples of STRIDE, at least SMALLEST, half on each side.
 *
 * @param {Float32Array[]} planes each of height x width
 * @returns {{data: Float32Array, height: number, width: number, top: number, left: number}} the planes one after the
 *   other, their size, and where the original begins
 */
export function pad(planes, height, width) {
  const rows = sources(height);
  const columns = sources(width);
  const size = { height: rows.from.length, width: columns.from.length, top: rows.before, left: columns.before };
  const data = new Float32Array(planes.length * size.height * size.width);
  let at = 0;
  for (const plane of planes) {
    for (const row of rows.from) {
      for (const column of columns.from) data[at++] = plane[row * width + column];
    }
  }
  return { data, ...size };
}

/** The original part of a padded plane. */
export function crop(plane, padded, height, width) {
  const result = new Float32Array(height * width);
  for (let row = 0; row < height; row++) {
    const start = (row + padded.top) * padded.width + padded.left;
    result.set(plane.subarray(start, start + width), row * width);
  }
  return result;
}
