/** JPEG and BMP, which the browser decodes. */

import { UserError } from "../errors.js";
import { checkSize } from "./size.js";

const FRAMES = new Set([0xc0, 0xc1, 0xc2, 0xc3, 0xc5, 0xc6, 0xc7, 0xc9, 0xca, 0xcb, 0xcd, 0xce, 0xcf]);

/** Number of components of a JPEG, from its frame header; 0 where there is none. */
function componentsOf(bytes) {
  let at = 2;
  while (at + 9 < bytes.length && bytes[at] === 0xff) {
    if (FRAMES.has(bytes[at + 1])) return bytes[at + 9];
    at += 2 + ((bytes[at + 2] << 8) | bytes[at + 3]);
  }
  return 0;
}

/** See `read` in read.js. */
export async function readByBrowser(bytes, name) {
  const jpeg = bytes[0] === 0xff && bytes[1] === 0xd8;
  if (!jpeg && !(bytes[0] === 0x42 && bytes[1] === 0x4d)) return null;
  let bitmap;
  try {
    const blob = new Blob([bytes], { type: jpeg ? "image/jpeg" : "image/bmp" });
    bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch (error) {
    throw new UserError(`${name}: is truncated or damaged (${error.message})`);
  }
  const { width, height } = bitmap;
  checkSize(width, height, name); // the browser limits what it decodes, and the canvas would take as much again
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const rgba = context.getImageData(0, 0, width, height).data;
  const channels = jpeg && componentsOf(bytes) === 1 ? 1 : 3;
  const data = new Uint8Array(width * height * channels);
  for (let n = 0; n < width * height; n++) {
    for (let c = 0; c < channels; c++) data[n * channels + c] = rgba[4 * n + c];
  }
  return { width, height, channels, data, name, values: null };
}
