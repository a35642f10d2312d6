/** TIFF of one page, 8 or 16 bits, gray or RGB. */

import UTIF from "utif2";
import { UserError } from "../errors.js";
import { checkSize } from "./size.js";

const [WIDTH, HEIGHT] = [256, 257];
const [BITS, PHOTOMETRIC, ORIENTATION, SAMPLES, PLANES, FORMAT] = [258, 262, 274, 277, 284, 339];

function isTiff(bytes) {
  const order = String.fromCharCode(bytes[0], bytes[1]);
  return (order === "II" && bytes[2] === 42) || (order === "MM" && bytes[3] === 42);
}

/** See `read` in read.js. */
export function readTiff(bytes, name) {
  if (!isTiff(bytes)) return null;
  const buffer = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength);
  let pages;
  try {
    pages = UTIF.decode(buffer);
    if (pages.length === 1) checkSize(...[WIDTH, HEIGHT].map((tag) => pages[0][`t${tag}`]?.[0]), name);
    if (pages.length === 1) UTIF.decodeImage(buffer, pages[0]);
  } catch (error) {
    if (error instanceof UserError) throw error;
    throw new UserError(`${name}: is truncated or damaged (${error.message ?? error})`);
  }
  if (pages.length !== 1) throw new UserError(`${name}: holds ${pages.length} pages; save each as an image of its own`);
  const [page] = pages;
  const one = (tag, usual) => page[`t${tag}`]?.[0] ?? usual;
  const { width, height } = page;
  const bits = one(BITS, 1);
  const channels = one(SAMPLES, 1);
  const photometric = one(PHOTOMETRIC, 1);
  const usual = one(PLANES, 1) === 1 && one(ORIENTATION, 1) === 1 && one(FORMAT, 1) === 1;
  const known = (channels === 1 && photometric <= 1) || (channels === 3 && photometric === 2);
  if (!usual || !known || (bits !== 8 && bits !== 16)) {
    throw new UserError(`${name}: is a TIFF of a kind that this page does not read; save it as PNG of 8 or 16 bits`);
  }
  const count = width * height * channels;
  if (!page.data || page.data.length < (count * bits) / 8) throw new UserError(`${name}: is truncated or damaged`);
  let data = page.data.slice(0, count);
  if (bits === 16) {
    const view = new DataView(page.data.buffer, page.data.byteOffset);
    data = Uint16Array.from({ length: count }, (_, n) => view.getUint16(2 * n, page.isLE));
  }
  if (photometric === 0) data = data.map((value) => 2 ** bits - 1 - value);
  return { width, height, channels, data, name, values: null };
}
