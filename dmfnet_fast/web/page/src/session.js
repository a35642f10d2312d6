/** What is loaded, and what is fused of it. Everything here runs in the worker. */

import { UserError } from "./errors.js";
import { MOST_PIXELS, readImage } from "./images/read.js";
import { writePng } from "./images/png.js";
import { rint } from "./numbers.js";
import { SMALLEST } from "./padding.js";
import { Canvas, isColor, toEightBit, valueRange } from "./rules.js";
import { align } from "./volumes/align.js";
import { isDicom, readDicom } from "./volumes/dicom.js";
import { displayRange, TRACERS } from "./volumes/measures.js";
import { deflated, readNifti, writeNifti } from "./volumes/nifti.js";
import { palette } from "./volumes/palettes.js";

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
    this.aspect = 1;
    this.units = [null, null];
  }

  /** The images to fuse, and the values to read out of them. */
  slice() {
    return { images: this.images, raw: this.images };
  }
}

/** Two volumes on one grid. */
class VolumePair {
  constructor(a, b, settings, warn) {
    this.aligned = align(a, b, settings.grid);
    this.aligned.warnings.forEach(warn);
    this.values = [settings.rangeA ?? displayRange(a), settings.rangeB ?? displayRange(b)];
    this.values.forEach(([low, high], n) => {
      if (!(low < high)) throw new UserError(`${[a, b][n].name}: black (${low}) must be less than white (${high})`);
    });
    this.channels = [a.channels, b.channels];
    const tracer = TRACERS.includes(b.modality) ? "hot-iron" : "gray";
    this.colormap = settings.colormap === "auto" ? tracer : settings.colormap;
    this.palette = b.channels === 3 || this.colormap === "gray" ? null : palette(this.colormap);
    this.eightBit = this.channels.map((channels) => channels === 3);
    this.volume = true;
    [this.slices, this.height, this.width] = this.aligned.shape;
    this.units = [a.units, b.units];
    const mm = (axis) => Math.hypot(this.aligned.affine[axis], this.aligned.affine[4 + axis], this.aligned.affine[8 + axis]);
    this.aspect = mm(1) / mm(2);
  }

  slice(number) {
    const { width, height } = this;
    const raw = [this.aligned.a, this.aligned.b].map((resampler, n) => {
      const { values } = resampler.slice(number);
      const channels = this.channels[n];
      return { width, height, channels, data: channels === 3 ? Uint8Array.from(values) : values };
    });
    const images = this.palette ? [raw[0], this.colored(raw[1])] : raw;
    return { images, raw };
  }

  /** Gray values in the palette's colors, whose ends are at black and white. */
  colored(image) {
    const [low, high] = this.values[1];
    const data = new Uint8Array(3 * image.data.length);
    image.data.forEach((value, n) => {
      const index = Math.min(255, Math.max(0, rint(Math.fround(Math.fround(value - low) * Math.fround(255 / (high - low))))));
      data.set(this.palette.subarray(3 * index, 3 * index + 3), 3 * n);
    });
    return { ...image, channels: 3, data };
  }

  /** Black and white of what is fused of b: of colors, 0 and 255. */
  get valuesFused() {
    return this.palette ? [0, 255] : this.values[1];
  }
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
    const shown = files.filter(({ name }) => !/(^|\/)(\.[^/]*|DICOMDIR|Thumbs\.db)$/i.test(name));
    if (shown.length === 0) throw new UserError("no files were given; choose an image, a NIfTI file or a folder of DICOM files");
    const dicom = shown.filter(({ bytes }) => isDicom(bytes));
    let found;
    if (dicom.length > 0) {
      found = await readDicom(dicom, await this.fetchDcm2niix());
    } else if (shown.length > 1) {
      throw new UserError(`${shown[0].name} and ${shown.length - 1} more: none is DICOM; give one image or one NIfTI file`);
    } else if (isNifti(shown[0].name)) {
      found = [await readNifti(shown[0].bytes, shown[0].name)];
    } else {
      found = [{ image: await readImage(shown[0].bytes, shown[0].name) }];
    }
    this.found = { ...this.found, [side]: found };
    return this.choose(side, 0);
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
    if (source && !source.image) source.modality = modality;
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
    const { volume, width, height, slices, aspect, values, eightBit, units, aligned } = this.pair;
    if (Math.min(width, height) < SMALLEST) throw new UserError(`slices are ${width}x${height}; the smallest size is ${SMALLEST}x${SMALLEST}`);
    if (width * height > MOST_PIXELS) throw new UserError(`slices are ${width}x${height}, which is too large for this page`);
    const fit = aligned ? { coverage: aligned.coverage, overlap: aligned.overlap, affine: aligned.affine } : null;
    return { volume, width, height, slices, aspect, values, eightBit, units, fit, warnings, colormap: this.pair.colormap ?? null };
  }

  /** Fuses a slice, once. */
  async fuse(number) {
    if (!this.fused[number]) {
      const { pair, settings } = this;
      const started = performance.now();
      const { images } = pair.slice(number);
      const canvas = new Canvas(...images, pair.values[0], pair.valuesFused ?? pair.values[1], settings);
      const before = performance.now();
      const luminances = await this.network.run(canvas);
      const network = performance.now() - before;
      this.fused[number] = { image: canvas.finish(luminances), luminances, network, all: performance.now() - started };
    }
    return this.fused[number];
  }

  /** A slice as it is shown: both sources and the fused image in 8 bits, and their values. */
  async slice(number) {
    const { image, network, all } = await this.fuse(number);
    const { pair } = this;
    const { images, raw } = pair.slice(number);
    const valuesFused = pair.valuesFused ?? pair.values[1];
    return {
      a: toEightBit(images[0], pair.values[0]),
      b: toEightBit(images[1], valuesFused),
      fused: toEightBit(image, valuesFused),
      raw: [raw[0], raw[1], image],
      milliseconds: { network, all },
    };
  }

  /** The fused image of one slice as PNG; floats are scaled to 16 bits. */
  async png(number) {
    const { image } = await this.fuse(number);
    if (!(image.data instanceof Float32Array)) return writePng(image);
    const [low, high] = this.pair.valuesFused ?? this.pair.values[1];
    const data = Uint16Array.from(image.data, (value) => rint(((value - low) * 65535) / (high - low)));
    return writePng({ ...image, data });
  }

  /** The fused volume as .nii.gz; all slices must have been fused. */
  async nifti() {
    const { shape, affine } = this.pair.aligned;
    const [first] = this.fused;
    const size = first.image.data.length;
    const values = new first.image.data.constructor(size * shape[0]);
    this.fused.forEach(({ image }, n) => values.set(image.data, n * size));
    return deflated(writeNifti({ shape, affine, channels: first.image.channels, values }));
  }
}
