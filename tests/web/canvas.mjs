/** Computes what `Canvas` in the page does for the cases in a folder: `node canvas.mjs FOLDER SOURCES`. */

import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [folder, sources] = process.argv.slice(2);
const { Canvas, isColor, valueRange } = await import(pathToFileURL(join(sources, "rules.js")));
const { crop, pad } = await import(pathToFileURL(join(sources, "padding.js")));
const TYPES = { uint8: Uint8Array, uint16: Uint16Array, float32: Float32Array };

function array(name, type) {
  const bytes = readFileSync(join(folder, name));
  return new TYPES[type](bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length));
}

const save = (name, data) => writeFileSync(join(folder, name), new Uint8Array(data.buffer, data.byteOffset, data.byteLength));

const said = JSON.parse(readFileSync(join(folder, "cases.json"), "utf8")).map((one, n) => {
  const images = one.images.map(({ width, height, channels, type }, side) => ({
    width, height, channels, name: "ab"[side], data: array(`${n}-${"ab"[side]}`, type),
  }));
  const warnings = [];
  const ranges = images.map((image, side) => valueRange(image, one.stated[side], (text) => warnings.push(text)));
  const canvas = new Canvas(...images, ...ranges, one.rules);
  const padded = pad([canvas.a], canvas.height, canvas.width);
  save(`${n}-padded`, padded.data);
  save(`${n}-cropped`, crop(padded.data, padded, canvas.height, canvas.width));
  save(`${n}-luminance-b`, canvas.b);
  canvas.interval().forEach((end, which) => save(`${n}-interval-${which}`, end));
  save(`${n}-finished`, canvas.finish(array(`${n}-fused`, "float32")).data);
  return { ranges, warnings: warnings.length, color: images.map(isColor) };
});
console.log(JSON.stringify(said));
