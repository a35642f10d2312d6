/** The largest image that the page takes. */

import { UserError } from "../errors.js";

export const MOST_PIXELS = 4096 * 4096;

/** Refuses what is too large, before it is decoded: a small file may claim a size that takes all memory. */
export function checkSize(width, height, name) {
  if (width * height > MOST_PIXELS) throw new UserError(`${name}: is ${width}x${height}, which is too large for this page`);
}
