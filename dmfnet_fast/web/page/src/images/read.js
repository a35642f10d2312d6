/** Images of all formats that the page reads. */

import { UserError } from "../errors.js";
import { SMALLEST } from "../padding.js";
import { readByBrowser } from "./browser.js";
import { readPng } from "./png.js";
import { readTiff } from "./tiff.js";

// Each takes the content and the name of a file. It returns null if the content is in another format, and throws a
// UserError if it is in this one but cannot be used; too large ones, before it decodes them.
const READERS = [readPng, readTiff, readByBrowser];

/**
 * Reads an image at its full depth.
 *
 * @param {Uint8Array} bytes
 * @param {string} name of the file, for messages
 * @param {number} smallest width and height
 * @returns {Promise<{width: number, height: number, channels: 1 | 3, data: Uint8Array | Uint16Array, name: string,
 *   values: null}>}
 */
export async function readImage(bytes, name, smallest = SMALLEST) {
  if (bytes.length === 0) throw new UserError(`${name}: is empty (0 bytes)`);
  for (const reader of READERS) {
    const image = await reader(bytes, name);
    if (image === null) continue;
    const { width, height } = image;
    if (Math.min(width, height) < smallest) {
      throw new UserError(`${name}: is ${width}x${height}; the smallest size is ${smallest}x${smallest}`);
    }
    return image;
  }
  throw new UserError(`${name}: is not an image that can be read; use PNG, JPEG, TIFF, BMP, NIfTI or DICOM`);
}
