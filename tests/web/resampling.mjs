/** Computes what the page does for the volumes in a folder: `node resampling.mjs FOLDER SOURCES`. */

import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [folder, sources] = process.argv.slice(2);
const { resampled } = await import(pathToFileURL(join(sources, "volumes", "align.js")));
const { displayRange } = await import(pathToFileURL(join(sources, "volumes", "measures.js")));
const TYPES = { float32: Float32Array, uint8: Uint8Array };

const ranges = JSON.parse(readFileSync(join(folder, "cases.json"), "utf8")).map(({ volume, affine, shape }, n) => {
  const bytes = readFileSync(join(folder, `${n}-values`));
  const values = new TYPES[volume.type](bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length));
  const given = { ...volume, name: `${n}`, values };
  const found = resampled(given, affine, shape);
  writeFileSync(join(folder, `${n}-resampled`), new Uint8Array(found.values.buffer));
  writeFileSync(join(folder, `${n}-inside`), found.inside);
  return displayRange(given);
});
console.log(JSON.stringify(ranges));
