/** What is loaded, and what is fused of it. Everything here runs in the worker. */

import { UserError } from "./errors.js";
import { writePng } from "./images/png.js";
import { readImage } from "./images/read.js";
import { MOST_PIXELS } from "./images/size.js";
import { rint } from "./numbers.js";
import { Canvas, isColor, toEightBit, valueRange } from "./rules.js";
import { IDENTITY, spacing } from "./volumes/affine.js";
import { align } from "./volumes/align.js";
import { isDicom, readDicom } from "./volumes/dicom.js";
import { displayRange, isTracer, unitsOfCt } from "./volumes/measures.js";
import { deflated, readNifti, writeNifti } from "./volumes/nifti.js";
import { palette } from "./volumes/palettes.js";
import { Upright } from "./volumes/upright.js";

const EIGHT_BIT = [0, 255];
const SMALLEST_SLICE = 16; // smaller ones show nothing that could be fused

const isNifti = (name) => /\.nii(\.gz)?$/i.test(name);

/** A pair of images as a stack of one slice. */
class ImagePair {
  constructor(a, b, settings, warn) {
    if (a.width !== b.width || a.height !== b.height) {
      const size = (image) => `${image.name} is ${image.width}x${image.height}`;
      throw new UserError(`${size(a)}, ${size(b)}: register them to one size first`);
    }
    if (isColor(a) && !isColor(b)) warn(`${a.name} is in color and ${b.name} is gray: are they swapped? The MRI comes first`);
    this.images = [a, b];
    this.values = [valueRange(a, settings.rangeA, warn), valueRange(b, settings.rangeB, warn)];
    this.eightBit = [a, b].map((image) => image.data instanceof Uint8Array);
    this.volume = false;
    this.width = b.width;
    this.height = b.height;
    this.slices = 1;
    this.upright = null;
    this.units = [null, null];
    this.fusedValues = this.values[1];
  }

  /** The images to fuse, and the values to read out of them. */
  slice() {
    return { images: this.images, raw: this.images };
  }

  finished(image) {
    return image;
  }
}

/** Two volumes on one grid, each shown in one range of values as 8-bit images, which are fused. */
class VolumePair {
  constructor(a, b, settings, warn) {
    if (b.modality === "MR" && ![null, "MR"].includes(a.modality)) {
      warn(`${a.name} is ${a.modality} and ${b.name} is MR: are they swapped? The MRI comes first`);
    }
    this.aligned = align(a, b, settings.grid);
    this.aligned.warnings.forEach(warn);
    const { shape, affine } = this.aligned;
    this.volumes = [a, b];
    // Of the volumes as they were read: a tissue is as bright on either grid.
    this.values = [[a, settings.rangeA], [b, settings.rangeB]].map(([volume, stated]) => {
      return checked(stated ?? displayRange(volume), volume);
    });
    const tracer = isTracer(b) ? "hot-iron" : "gray";
    this.colormap = settings.colormap === "auto" ? tracer : settings.colormap;
    this.palette = b.channels === 3 || this.colormap === "gray" ? null : palette(this.colormap);
    this.eightBit = this.volumes.map(({ channels }) => channels === 3);
    this.volume = true;
    [this.slices, this.height, this.width] = shape;
    if (Math.min(this.width, this.height) < SMALLEST_SLICE) {
      throw new UserError(`slices are ${this.width}x${this.height}; the smallest size is ${SMALLEST_SLICE}x${SMALLEST_SLICE}: take the other volume's slices`);
    }
    this.units = this.volumes.map(({ units }) => units);
    this.upright = new Upright(affine, this.height, this.width);
    this.fusedValues = EIGHT_BIT;
  }

  slice(number) {
    const { width, height } = this;
    const raw = [this.aligned.a, this.aligned.b].map(({ channels, values }) => {
      const size = width * height * channels;
      return { width, height, channels, data: values.slice(number * size, (number + 1) * size) };
    });
    return { images: raw.map((image, n) => this.display(image, n)), raw };
  }

  /** Values as 8-bit gray levels, or in the palette's colors. */
  display(image, side) {
    if (image.channels === 3) return image;
    const [low, high] = this.values[side].map(Math.fround);
    const factor = Math.fround(255 / (this.values[side][1] - this.values[side][0]));
    const levels = Uint8Array.from(image.data, (value) => {
      return Math.min(255, Math.max(0, rint(Math.fround(Math.fround(value - low) * factor))));
    });
    if (side === 0 || !this.palette) return { ...image, data: levels };
    const data = new Uint8Array(3 * levels.length);
    levels.forEach((level, n) => data.set(this.palette.subarray(3 * level, 3 * level + 3), 3 * n));
    return { ...image, channels: 3, data };
  }

  /** The fused slices are in color, as those of dmfnet-fuse are. */
  finished(image) {
    if (image.channels === 3) return image;
    const data = new Uint8Array(3 * image.data.length);
    image.data.forEach((level, n) => data.fill(level, 3 * n, 3 * n + 3));
    return { ...image, channels: 3, data };
  }
}

/** A fused volume that was made before; it is shown alone. */
class Result {
  constructor(volume) {
    if (volume.channels !== 3) throw new UserError(`${volume.name}: is not in color, so it is no result of dmfnet-fuse`);
    const { shape, affine } = volume;
    this.given = volume;
    this.volume = true;
    [this.slices, this.height, this.width] = shape;
    this.upright = new Upright(affine, this.height, this.width);
    Object.assign(this, { values: [EIGHT_BIT, EIGHT_BIT], eightBit: [true, true], units: [null, null] });
    this.aligned = { shape, affine };
  }

  image(number) {
    const { width, height } = this;
    const size = 3 * width * height;
    return { width, height, channels: 3, data: this.given.values.subarray(number * size, (number + 1) * size) };
  }
}

/** Images as slices of a volume, in the order of their names; without a place in space. */
async function stacked(files) {
  const sorted = [...files].sort((one, other) => one.name.localeCompare(other.name, "en", { numeric: true }));
  const images = await Promise.all(sorted.map(({ name, bytes }) => readImage(bytes, name, 1)));
  const [{ width, height }] = images;
  const values = new Uint8Array(3 * width * height * images.length);
  images.forEach((image, n) => {
    if (image.width !== width || image.height !== height || image.channels !== 3) {
      throw new UserError(`${image.name}: differs in size or kind from ${images[0].name}`);
    }
    values.set(image.data, n * 3 * width * height);
  });
  return { name: sorted[0].name, shape: [images.length, height, width], affine: IDENTITY, channels: 3, values, notes: [] };
}

function checked([low, high], { name }) {
  if (!(low < high)) throw new UserError(`${name}: black (${low}) must be less than white (${high})`);
  return [low, high];
}

export class Session {
  /** @param {() => Promise<ArrayBuffer>} fetchDcm2niix gives dcm2niix's program when it is needed */
  constructor(fetchDcm2niix) {
    this.fetchDcm2niix = fetchDcm2niix;
    this.sources = { a: null, b: null };
    this.pair = null;
    this.fused = [];
    this.network = null;
  }

  /**
   * Reads what a user gave for one side: one image, one NIfTI file, or DICOM files.
   *
   * @param {"a" | "b"} side
   * @param {{name: string, bytes: Uint8Array}[]} files
   */
  async read(side, files) {
    this.sources[side] = null;
    this.pair = null;
    const found = await this.foundIn(files);
    this.found = { ...this.found, [side]: found };
    return this.choose(side, 0);
  }

  /** One image, or all volumes, in files. */
  async foundIn(files) {
    const shown = files.filter(({ name }) => !/(^|\/)(\.[^/]*|DICOMDIR|Thumbs\.db)$/i.test(name));
    if (shown.length === 0) throw new UserError("no files were given; choose an image, a NIfTI file or a folder of DICOM files");
    const dicom = shown.filter(({ bytes }) => isDicom(bytes));
    if (dicom.length > 0) return readDicom(dicom, await this.fetchDcm2niix());
    if (shown.length > 1) {
      throw new UserError(`${shown[0].name} and ${shown.length - 1} more: none is DICOM; give one image or one NIfTI file`);
    }
    const [{ name, bytes }] = shown;
    return [isNifti(name) ? await readNifti(bytes, name) : { image: await readImage(bytes, name) }];
  }

  /** Takes one of several volumes that were found. */
  choose(side, number) {
    const found = this.found[side];
    const chosen = found[number];
    this.sources[side] = chosen;
    this.pair = null;
    const describe = ({ image, shape, name, modality }) => {
      const size = image ? `${image.width} x ${image.height}` : `${shape[2]} x ${shape[1]} x ${shape[0]}`;
      return `${image ? image.name : name} - ${modality ? `${modality}, ` : ""}${size}`;
    };
    return {
      chosen: number,
      choices: found.map(describe),
      volume: !chosen.image,
      modality: chosen.modality ?? null,
      notes: chosen.notes ?? [],
    };
  }

  /** What a file that does not say is of. */
  setModality(side, modality) {
    const source = this.sources[side];
    if (!source || source.image) return;
    source.modality = modality;
    source.units = modality === "CT" ? unitsOfCt(source) : null;
  }

  /**
   * Puts both sources together; everything fused before is dropped.
   *
   * @param {{rangeA: [number, number] | null, rangeB: [number, number] | null, grid: "a" | "b", colormap: string,
   *   keptChroma: number, invention: boolean}} settings
   */
  prepare(settings) {
    const { a, b } = this.sources;
    if (!a || !b) throw new UserError("two are needed: an MRI, and a CT, PET or SPECT");
    if (Boolean(a.image) !== Boolean(b.image)) {
      throw new UserError("one is a single image and the other a volume: give two images or two volumes");
    }
    const warnings = [];
    const warn = (message) => warnings.push(message);
    this.fused = [];
    this.settings = settings;
    this.pair = a.image ? new ImagePair(a.image, b.image, settings, warn) : new VolumePair(a, b, settings, warn);
    const { width, height } = this.pair;
    if (width * height > MOST_PIXELS) throw new UserError(`slices are ${width}x${height}, which is too large for this page`);
    return { ...this.described(), warnings };
  }

  /** What the page is told of the pair: as it is shown, upright. */
  described() {
    const { volume, slices, values, eightBit, units, aligned, upright } = this.pair;
    const { width, height } = upright ?? this.pair;
    const [, rows, columns] = upright ? spacing(upright.affine) : [1, 1, 1];
    const fit = aligned ? { coverage: aligned.coverage, overlap: aligned.overlap, affine: upright.affine } : null;
    const letters = upright ? upright.letters : "";
    return { volume, width, height, slices, aspect: rows / columns, values, eightBit, units, fit, letters };
  }

  /** An image as it is shown. */
  shown(image) {
    return this.pair.upright ? this.pair.upright.image(image) : image;
  }

  /**
   * Shows a result of dmfnet-fuse, which needs no network.
   *
   * @param {{name: string, bytes: Uint8Array}[]} files one NIfTI file, DICOM files, or images as slices
   */
  async result(files) {
    const pngs = files.filter(({ name }) => /\.png$/i.test(name));
    const [found] = pngs.length ? [await stacked(pngs)] : await this.foundIn(files);
    this.pair = new Result(found);
    return { ...this.described(), warnings: found.notes };
  }

  /** Fuses a slice, once. */
  async fuse(number) {
    if (!this.fused[number]) {
      const { pair, settings } = this;
      const started = performance.now();
      const { images } = pair.slice(number);
      const canvas = new Canvas(...images, ...(pair.volume ? [EIGHT_BIT, EIGHT_BIT] : pair.values), settings);
      const before = performance.now();
      const luminances = await this.network.run(canvas);
      const network = performance.now() - before;
      const image = pair.finished(canvas.finish(luminances));
      this.fused[number] = { image, network, all: performance.now() - started };
      if (!pair.volume) this.fused[number].luminances = luminances; // of a volume's slices, too many to keep
    }
    return this.fused[number];
  }

  /** A slice as it is shown: both sources and the fused image in 8 bits, and their values. */
  async slice(number) {
    const { pair } = this;
    if (pair instanceof Result) {
      const fused = this.shown(pair.image(number));
      return { a: fused, b: fused, fused, raw: [null, null, fused], milliseconds: null };
    }
    const { image, network, all } = await this.fuse(number);
    const { images, raw } = pair.slice(number);
    const [a, b] = images.map((one, n) => this.shown(toEightBit(one, pair.values[n])));
    const fused = this.shown(toEightBit(image, pair.fusedValues));
    return { a, b, fused, raw: [...raw, image].map((one) => this.shown(one)), milliseconds: { network, all } };
  }

  /** The fused image of one slice, upright, as PNG; floats are scaled to 16 bits. */
  async png(number) {
    const image = this.shown(this.pair instanceof Result ? this.pair.image(number) : (await this.fuse(number)).image);
    if (!(image.data instanceof Float32Array)) return writePng(image);
    const [low, high] = this.pair.fusedValues;
    const data = Uint16Array.from(image.data, (value) => rint(((value - low) * 65535) / (high - low)));
    return writePng({ ...image, data });
  }

  /** The fused volume as .nii.gz; all slices must have been fused. */
  async nifti() {
    const { shape, affine } = this.pair.aligned;
    for (let n = 0; n < shape[0]; n++) {
      if (!this.fused[n]) throw new UserError(`slice ${n + 1} of ${shape[0]} is not fused; fuse all slices first`);
    }
    const [first] = this.fused;
    const size = first.image.data.length;
    const values = new first.image.data.constructor(size * shape[0]);
    this.fused.forEach(({ image }, n) => values.set(image.data, n * size));
    return deflated(writeNifti({ shape, affine, channels: first.image.channels, values }));
  }
}
