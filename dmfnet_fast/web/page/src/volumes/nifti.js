/** NIfTI: read and written. */

import { isNIFTI, readHeader } from "nifti-reader-js";
import { UserError } from "../errors.js";
import { fault, turned } from "./affine.js";

const MOST_VOXELS = 2 ** 26; // a quarter of a GiB of float32
const MILLIMETERS = { 0: 1, 1: 1000, 2: 1, 3: 0.001 };
const RGB24 = 128;
const RGBA32 = 2304;
// By NIfTI's code of a type: its size in bytes, and how a DataView reads it.
const TYPES = {
  2: [1, "getUint8"],
  4: [2, "getInt16"],
  8: [4, "getInt32"],
  16: [4, "getFloat32"],
  64: [8, "getFloat64"],
  256: [1, "getInt8"],
  512: [2, "getUint16"],
  768: [4, "getUint32"],
  1024: [8, "getBigInt64"],
  1280: [8, "getBigUint64"],
  [RGB24]: [3, null],
  [RGBA32]: [4, null],
};

const MOST_BYTES = 8 * MOST_VOXELS + 2 ** 20; // of the widest type, with a header

/** Decompresses a file, unless it holds more than the page can use: a small file may unpack to more than the memory. */
async function inflated(bytes, name) {
  let size = 0;
  const limit = new TransformStream({
    transform(part, controller) {
      size += part.length;
      if (size > MOST_BYTES) controller.error(new Error("too large"));
      else controller.enqueue(part);
    },
  });
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip")).pipeThrough(limit);
  try {
    return new Uint8Array(await new Response(stream).arrayBuffer());
  } catch {
    if (size > MOST_BYTES) throw new UserError(`${name}: is too large for this page, or holds several volumes`);
    throw new UserError(`${name}: is truncated or damaged: it cannot be decompressed; copy it again`);
  }
}

export async function deflated(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new CompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** (column, row, slice) to RAS: by the sform where there is one, else by the qform, as nibabel chooses. */
function affineOf(header, view) {
  if (!(header.sform_code > 0)) return header.affine.flat();
  const little = header.littleEndian;
  const second = view.getInt32(0, little) === 540;
  const result = [];
  for (let n = 0; n < 12; n++) {
    result.push(second ? view.getFloat64(400 + 8 * n, little) : view.getFloat32(280 + 4 * n, little));
  }
  return [...result, 0, 0, 0, 1];
}

/**
 * Reads a NIfTI file.
 *
 * @param {Uint8Array} bytes
 * @param {string} name of the file, for messages
 * @returns a volume: {name, shape: [slices, rows, columns], channels: 1 | 3, values: Float32Array or, in color,
 *   Uint8Array, affine: (slice, row, column) to mm in LPS, modality: null, units: null, notes: string[]}
 */
export async function readNifti(bytes, name) {
  if (bytes[0] === 0x1f && bytes[1] === 0x8b) bytes = await inflated(bytes, name);
  const start = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + Math.min(bytes.length, 544));
  let header = null;
  try {
    if (isNIFTI(start)) header = readHeader(start);
  } catch {
    header = null;
  }
  if (!header) throw new UserError(`${name}: is not NIfTI, or its header is damaged`);
  const [dimensions, columns, rows, slices, ...others] = header.dims;
  if (dimensions > 3 && others.slice(0, dimensions - 3).some((size) => size > 1)) {
    throw new UserError(`${name}: holds several volumes; write the one to fuse to a file of its own`);
  }
  const shape = [dimensions > 2 ? slices : 1, dimensions > 1 ? rows : 1, columns];
  const count = shape[0] * shape[1] * shape[2];
  if (!(Math.min(...shape) >= 1 && count <= MOST_VOXELS)) {
    throw new UserError(`${name}: claims the size ${shape.join(" x ")}, which is damage or too large for this page`);
  }
  const type = TYPES[header.datatypeCode];
  if (!type) throw new UserError(`${name}: has voxels of a type that is not read; convert them to float32`);
  if (!(header.sform_code > 0 || header.qform_code > 0)) {
    throw new UserError(`${name}: has neither qform nor sform, so its place is unknown; convert it from DICOM again`);
  }
  const [size, method] = type;
  const offset = header.vox_offset;
  if (!(offset >= 0) || bytes.length < offset + count * size) {
    throw new UserError(`${name}: is truncated or damaged: its header claims more voxels; copy it again`);
  }
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  const scale = MILLIMETERS[header.xyzt_units & 7] ?? 1;
  const affine = turned(affineOf(header, view).map((value, n) => (n < 12 ? value * scale : value)));
  const wrong = fault(affine);
  if (wrong) throw new UserError(`${name}: ${wrong}`);
  const known = { name, shape, affine, modality: null, units: null, notes: [] };
  if (method === null) {
    const values = new Uint8Array(3 * count);
    for (let n = 0; n < count; n++) {
      for (let c = 0; c < 3; c++) values[3 * n + c] = bytes[offset + n * size + c];
    }
    return { ...known, channels: 3, values };
  }
  const scaled = Number.isFinite(header.scl_slope) && header.scl_slope !== 0;
  const slope = scaled ? header.scl_slope : 1;
  const intercept = scaled && Number.isFinite(header.scl_inter) ? header.scl_inter : 0;
  const values = new Float32Array(count);
  let holes = 0;
  for (let n = 0; n < count; n++) {
    const value = Number(view[method](offset + n * size, header.littleEndian)) * slope + intercept;
    if (Number.isNaN(value)) holes += 1;
    else values[n] = value;
    if (!Number.isFinite(values[n])) throw new UserError(`${name}: has infinite values; replace them first`);
  }
  if (holes) known.notes.push(`${name}: ${holes} voxels that are no numbers (NaN) were set to 0`);
  return { ...known, channels: 1, values };
}

/**
 * A NIfTI-1 file: float32, or RGB24 for color.
 *
 * @param {{shape: number[], affine: number[], channels: 1 | 3, values: Float32Array | Uint8Array}} volume
 */
export function writeNifti({ shape, affine, channels, values }) {
  const bytes = new Uint8Array(352 + values.byteLength);
  const view = new DataView(bytes.buffer);
  const [slices, rows, columns] = shape;
  const ras = turned(affine);
  const sizes = [0, 1, 2].map((n) => Math.hypot(ras[n], ras[4 + n], ras[8 + n]));
  view.setInt32(0, 348, true);
  [3, columns, rows, slices, 1, 1, 1, 1].forEach((size, n) => view.setInt16(40 + 2 * n, size, true));
  view.setInt16(70, channels === 3 ? RGB24 : 16, true);
  view.setInt16(72, channels === 3 ? 24 : 32, true);
  [1, ...sizes, 1, 1, 1, 1].forEach((size, n) => view.setFloat32(76 + 4 * n, size, true));
  view.setFloat32(108, 352, true); // where the voxels begin
  view.setFloat32(112, 1, true); // slope
  bytes[123] = 2; // mm
  view.setInt16(254, 1, true); // the sform holds scanner coordinates
  ras.slice(0, 12).forEach((value, n) => view.setFloat32(280 + 4 * n, value, true));
  bytes.set(new TextEncoder().encode("n+1\0"), 344);
  bytes.set(new Uint8Array(values.buffer, values.byteOffset, values.byteLength), 352);
  return bytes;
}
