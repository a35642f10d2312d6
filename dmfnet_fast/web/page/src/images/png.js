/** PNG of 1 to 16 bits, gray, color or palette; read and written. */

import { decode, encode, hasPngSignature } from "fast-png";
import { UserError } from "../errors.js";
import { rint } from "../numbers.js";
import { checkSize } from "./size.js";

/** Samples of less than 8 bits, one in a byte; each row begins with a new byte. */
function unpacked({ data, width, height, depth }) {
  const inRow = Math.ceil((width * depth) / 8);
  const result = new Uint8Array(width * height);
  for (let row = 0; row < height; row++) {
    for (let column = 0; column < width; column++) {
      const bit = column * depth;
      const shift = 8 - depth - (bit % 8);
      result[row * width + column] = (data[row * inRow + (bit >> 3)] >> shift) & ((1 << depth) - 1);
    }
  }
  return result;
}

/** Blends pixels over black and drops their alpha. */
function overBlack(data, channels, top) {
  const kept = channels - 1;
  const result = new data.constructor((data.length / channels) * kept);
  for (let n = 0; n < data.length / channels; n++) {
    const alpha = data[n * channels + kept] / top;
    for (let c = 0; c < kept; c++) result[n * kept + c] = rint(data[n * channels + c] * alpha);
  }
  return result;
}

function hide(data, channels, key) {
  const result = data.slice();
  for (let n = 0; n < data.length; n += channels) {
    let matches = true;
    for (let c = 0; c < channels; c++) matches &&= data[n + c] === key[c];
    if (matches) result.fill(0, n, n + channels);
  }
  return result;
}

function fromPalette(indices, palette) {
  const size = palette[0].length; // 3, or 4 with transparency
  const colors = new Uint8Array(indices.length * size);
  for (let n = 0; n < indices.length; n++) colors.set(palette[indices[n]] ?? palette[0], n * size);
  const rgb = size === 4 ? overBlack(colors, 4, 255) : colors;
  const gray = new Uint8Array(indices.length);
  for (let n = 0; n < gray.length; n++) {
    if (rgb[3 * n] !== rgb[3 * n + 1] || rgb[3 * n] !== rgb[3 * n + 2]) return { channels: 3, data: rgb };
    gray[n] = rgb[3 * n];
  }
  return { channels: 1, data: gray };
}

function pixelsOf(png) {
  const { depth, palette, transparency } = png;
  let { data, channels } = png;
  if (depth < 8) {
    data = unpacked(png);
    if (!palette) {
      if (transparency) data = hide(data, 1, transparency);
      return { channels: 1, data: data.map((value) => value * (255 / ((1 << depth) - 1))) };
    }
  }
  if (palette) return fromPalette(data, palette);
  if (channels === 2 || channels === 4) return { channels: channels - 1, data: overBlack(data, channels, 2 ** depth - 1) };
  return { channels, data: transparency ? hide(data, channels, transparency) : data };
}

/** See `read` in read.js. */
export function readPng(bytes, name) {
  if (!hasPngSignature(bytes)) return null;
  if (bytes.length >= 24) {
    const header = new DataView(bytes.buffer, bytes.byteOffset);
    checkSize(header.getUint32(16), header.getUint32(20), name); // the header always comes first
  }
  let png;
  try {
    png = decode(bytes, { checkCrc: true });
  } catch (error) {
    throw new UserError(`${name}: is truncated or damaged (${error.message})`);
  }
  const { width, height } = png;
  return { width, height, ...pixelsOf(png), name, values: null };
}

/** A PNG of 8 or 16 bits, as the image has; images of floats are not written. */
export function writePng(image) {
  const { width, height, channels, data } = image;
  return encode({ width, height, channels, data, depth: data instanceof Uint16Array ? 16 : 8 });
}
