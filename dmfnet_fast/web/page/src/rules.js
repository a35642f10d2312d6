/**
 * The rules that hold for every fused pixel, and the way from images to the network's inputs and back:
 * `dmfnet_fast.images.rules` and `color` in JavaScript, equal to them bit for bit for images of whole numbers.
 *
 * An image is {width, height, channels: 1 or 3, data: Uint8Array, Uint16Array or Float32Array, interleaved}.
 */

import { UserError } from "./errors.js";
import { clip, extent, percentiles, rint } from "./numbers.js";

export const DEFAULT_RULES = { keptChroma: 0.75, invention: false };

const RED = 299;
const GREEN = 587;
const BLUE = 114;
// An image is in color if its channels differ by more than this fraction of its largest value ...
const COLOR_SPREAD = 0.1;
// ... in more than this fraction of its pixels. Less is the tint that JPEG leaves on gray images.
const COLOR_PART = 0.005;

const same = (x) => x;

/** Luminance (BT.601) in the image's own units: of 8 bits a Uint8Array, as by Pillow's "L", else a Float64Array. */
export function luminance(image) {
  const { data, channels } = image;
  const count = image.width * image.height;
  if (data instanceof Uint8Array) {
    if (channels === 1) return data;
    const result = new Uint8Array(count);
    for (let n = 0, at = 0; n < count; n++, at += 3) {
      result[n] = (data[at] * 19595 + data[at + 1] * 38470 + data[at + 2] * 7471 + 0x8000) >> 16;
    }
    return result;
  }
  if (channels === 1) return Float64Array.from(data);
  const result = new Float64Array(count);
  for (let n = 0, at = 0; n < count; n++, at += 3) {
    result[n] = data[at] * (RED / 1000) + data[at + 1] * (GREEN / 1000) + data[at + 2] * (BLUE / 1000);
  }
  return result;
}

/** Whether the image is in color, rather than gray stored as RGB. */
export function isColor(image) {
  if (image.channels === 1) return false;
  const { data } = image;
  const limit = COLOR_SPREAD * Math.max(extent(data)[1], 1e-12);
  let colored = 0;
  for (let at = 0; at < data.length; at += 3) {
    const most = Math.max(data[at], data[at + 1], data[at + 2]);
    const least = Math.min(data[at], data[at + 1], data[at + 2]);
    if (most - least > limit) colored += 1;
  }
  return colored / (data.length / 3) > COLOR_PART;
}

/** The largest value of the brightest channel after a median filter of 3x3 pixels. */
function medianPeak(image) {
  const { data, channels, width, height } = image;
  const gray = new Uint16Array(width * height);
  for (let n = 0; n < gray.length; n++) {
    for (let c = 0; c < channels; c++) gray[n] = Math.max(gray[n], data[n * channels + c]);
  }
  let peak = 0;
  const around = new Uint16Array(9);
  for (let row = 1; row < height - 1; row++) {
    for (let column = 1; column < width - 1; column++) {
      const middle = row * width + column;
      if (gray[middle] <= peak && gray[middle - 1] <= peak && gray[middle + 1] <= peak && gray[middle - width] <= peak
        && gray[middle + width] <= peak) continue; // five of nine are no larger, so the median is not
      let at = 0;
      for (const line of [middle - width, middle, middle + width]) {
        for (let step = -1; step <= 1; step++) around[at++] = gray[line + step];
      }
      peak = Math.max(peak, around.sort()[4]);
    }
  }
  return peak;
}

const bitLength = (value) => (value > 0 ? Math.floor(Math.log2(value)) + 1 : 0);

function rangeOf16Bit(image, warn) {
  const { data, name } = image;
  const [lowest, highest] = percentiles(data, [0.1, 99.9]);
  const peak = extent(data)[1];
  // A few hot pixels do not turn 12-bit data into 16-bit data; a small lesion is more than what a median removes.
  const bulk = highest < peak / 8 ? Math.max(Math.floor(highest), medianPeak(image)) : peak;
  const outliers = bulk < peak / 8;
  const bits = bitLength(outliers ? bulk : peak);
  const top = bits > 0 && bits < 16 ? 2 ** Math.max(8, bits) - 1 : 65535;
  const advice = `0 to ${top} is assumed as its range; state the range if it is another`;
  if (outliers) {
    warn(`${name}: nearly all values are at most ${bulk}, but a few reach ${peak}: ${advice}`);
  } else if (top < 65535) {
    warn(`${name}: its largest value is ${peak}: ${advice}`);
  } else if (peak > 0 && highest - lowest < 65535 / 8) {
    warn(`${name}: nearly all values lie in ${lowest} to ${highest}: ${advice}`);
  }
  return [0, top];
}

/**
 * The values of black and white in an image: 0 and 255 for 8 bits, else as stated, else inferred.
 *
 * @param {[number, number] | null} stated
 * @param {(message: string) => void} warn
 */
export function valueRange(image, stated, warn) {
  if (image.data instanceof Uint8Array) return [0, 255];
  if (stated) {
    const [low, high] = stated;
    if (!(Number.isFinite(low) && Number.isFinite(high) && low < high)) {
      throw new UserError(`${image.name}: black (${low}) must be less than white (${high})`);
    }
    return [low, high];
  }
  if (image.data instanceof Uint16Array) return rangeOf16Bit(image, warn);
  const [low, high] = extent(image.data);
  if (low < 0 || high > 1) {
    throw new UserError(`${image.name}: its values, from ${low} to ${high}, are outside of 0 to 1; state its range`);
  }
  return [0, 1];
}

/** Luminances in the image's units to [-1, 1]; what lies outside of `values` is clipped. */
function toNetwork(gray, values) {
  const [low, high] = values;
  const factor = 2 / (high - low);
  const result = new Float32Array(gray.length);
  for (let n = 0; n < gray.length; n++) result[n] = (clip(gray[n], low, high) - low) * factor - 1;
  return result;
}

/** The least or the greatest value of both arrays in each pixel's 3x3 neighborhood, which is cropped at the border. */
function neighborhood(a, b, height, width, choose) {
  const rows = new a.constructor(a.length);
  const result = new a.constructor(a.length);
  for (let row = 0; row < height; row++) {
    for (let column = 0; column < width; column++) {
      const n = row * width + column;
      let value = choose(a[n], b[n]);
      if (column > 0) value = choose(value, choose(a[n - 1], b[n - 1]));
      if (column < width - 1) value = choose(value, choose(a[n + 1], b[n + 1]));
      rows[n] = value;
    }
  }
  for (let row = 0; row < height; row++) {
    for (let column = 0; column < width; column++) {
      const n = row * width + column;
      let value = rows[n];
      if (row > 0) value = choose(value, rows[n - width]);
      if (row < height - 1) value = choose(value, rows[n + width]);
      result[n] = value;
    }
  }
  return result;
}

/** Turns a pair of images into the network's inputs, and the network's output into the fused image. */
export class Canvas {
  /**
   * @param a the anatomical image
   * @param b the image of the other modality, of the same size; the result has its colors
   * @param {[number, number]} valuesA the values of black and white in a
   * @param {[number, number]} valuesB those in b
   */
  constructor(a, b, valuesA, valuesB, rules = DEFAULT_RULES) {
    const grayA = luminance(a);
    const grayB = luminance(b);
    this.width = b.width;
    this.height = b.height;
    this.a = toNetwork(grayA, valuesA);
    this.b = toNetwork(grayB, valuesB);
    this.image = b;
    this.values = valuesB;
    const [low, high] = valuesB;
    this.whole = !(b.data instanceof Float32Array);
    this.black = this.whole ? Math.ceil(low) : low;
    this.white = this.whole ? Math.floor(high) : high;
    // float32 holds thousandths of 8-bit channels exactly, float64 those of 16-bit channels.
    this.narrow = b.data instanceof Uint8Array;
    this.round = this.narrow ? Math.fround : same;
    const Type = this.narrow ? Float32Array : Float64Array;
    const count = this.width * this.height;
    let lowest;
    let highest;
    if (rules.invention) {
      lowest = new Type(count).fill(this.black);
      highest = new Type(count).fill(this.white);
    } else {
      const eight = grayA instanceof Uint8Array && grayB instanceof Uint8Array;
      const one = eight ? grayA : this.inUnitsOfB(this.a);
      const other = eight ? grayB : this.inUnitsOfB(this.b);
      lowest = Type.from(neighborhood(one, other, this.height, this.width, Math.min));
      highest = Type.from(neighborhood(one, other, this.height, this.width, Math.max));
    }
    if (b.channels === 3) this.boundByColor(lowest, highest, rules.keptChroma);
    this.lowest = lowest;
    this.highest = highest;
  }

  /** Luminances in [-1, 1] in b's units. */
  inUnitsOfB(image) {
    const { round, black, white } = this;
    const [low, high] = this.values;
    const half = round((high - low) / 2);
    const result = new (this.narrow ? Float32Array : Float64Array)(image.length);
    for (let n = 0; n < image.length; n++) {
      const y = round(round(round(image[n] + 1) * half) + round(low));
      result[n] = this.whole ? clip(rint(y), black, white) : y;
    }
    return result;
  }

  /** A channel of b, within its range. */
  channel(n, c) {
    const value = this.image.data[3 * n + c];
    if (this.narrow) return value;
    const within = clip(value, ...this.values);
    return this.whole ? clip(rint(within), this.black, this.white) : within;
  }

  /** The color of pixel n of b: channels, and in thousandths luminance and distances of the extremes from it. */
  color(n) {
    const red = this.channel(n, 0);
    const green = this.channel(n, 1);
    const blue = this.channel(n, 2);
    const y = RED * red + GREEN * green + BLUE * blue;
    const brightest = Math.max(red, green, blue);
    const darkest = Math.min(red, green, blue);
    return { red, green, blue, y, brightest, darkest, above: 1000 * brightest - y, below: y - 1000 * darkest };
  }

  /** Narrows the interval to luminances at which the fraction `kept` of each pixel's chroma can be represented. */
  boundByColor(lowest, highest, kept) {
    const { round, black, white } = this;
    const factor = round(kept / 1000);
    for (let n = 0; n < lowest.length; n++) {
      const { above, below } = this.color(n);
      let low = round(round(below * factor) + black);
      let high = round(white - round(above * factor));
      if (this.whole) {
        low = Math.ceil(low);
        high = Math.floor(high);
      }
      high = Math.max(low, high);
      lowest[n] = clip(lowest[n], low, high);
      highest[n] = clip(highest[n], low, high);
    }
  }

  /** The least and the greatest luminance allowed for each pixel, two Float32Arrays in [-1, 1]. */
  interval() {
    const { round } = this;
    const [low, high] = this.values;
    const factor = round(2 / (high - low));
    return [this.lowest, this.highest].map((end) => {
      const result = new Float32Array(end.length);
      for (let n = 0; n < end.length; n++) result[n] = round(round(round(end[n] - low) * factor) - 1);
      return result;
    });
  }

  /**
   * The fused image from the network's output and b's colors.
   *
   * @param {Float32Array} fused luminances in [-1, 1]; they are clamped to the interval
   * @returns an image of b's size and type, within its range
   */
  finish(fused) {
    const { width, height, channels } = this.image;
    const data = new this.image.data.constructor(this.image.data.length);
    const luminances = this.inUnitsOfB(fused);
    for (let n = 0; n < luminances.length; n++) {
      const y = Math.min(Math.max(luminances[n], this.lowest[n]), this.highest[n]);
      if (channels === 1) data[n] = y;
      else if (this.whole) this.applyToWhole(y, n, data);
      else data.set(this.paler(y, this.color(n)), 3 * n);
    }
    return { width, height, channels, data };
  }

  /** Shifts all channels alike, which keeps Cb and Cr; where the result would leave the range, makes it paler. */
  applyToWhole(y, n, data) {
    const { round, black, white } = this;
    const color = this.color(n);
    const shift = rint(round((1000 * y - color.y) * round(0.001)));
    const fits = white - color.brightest - shift >= 0 && shift + color.darkest - black >= 0;
    const result = fits ? [color.red + shift, color.green + shift, color.blue + shift] : this.paler(y, color);
    data.set(result, 3 * n);
  }

  /** Red, green and blue of luminance y and b's hue, desaturated by no more than the range requires. */
  paler(y, color) {
    const { round, black, white, whole } = this;
    const least = whole ? 1 : 1e-30; // avoids division by zero for gray pixels
    const above = Math.max(color.above, least);
    const below = Math.max(color.below, least);
    const share = Math.min(round((1000 * (white - y)) / above), round((1000 * (y - black)) / below), 1);
    const factor = round(share * round(0.001));
    return [color.red, color.green, color.blue].map((channel) => {
      const change = round((1000 * channel - color.y) * factor);
      return whole ? y + rint(change) : clip(round(y + change), black, white);
    });
  }
}

/** Scales an image from the range `values` to 8 bits, for showing it. */
export function toEightBit(image, values) {
  if (image.data instanceof Uint8Array) return image;
  const [low, high] = values;
  const data = new Uint8Array(image.data.length);
  for (let n = 0; n < data.length; n++) data[n] = rint((clip(image.data[n], low, high) - low) * (255 / (high - low)));
  return { ...image, data };
}
