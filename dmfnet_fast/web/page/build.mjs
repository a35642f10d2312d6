/** Builds the page from src/ and node_modules/ into a folder: `node build.mjs FOLDER`. */

import { cp, mkdir, readFile, writeFile } from "node:fs/promises";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { gzip } from "node:zlib";
import { build } from "esbuild";

const HERE = dirname(fileURLToPath(import.meta.url));
const MODULES = join(HERE, "node_modules");
const ORT = "ort.webgpu.bundle.min.mjs";
// Packages whose programs are copied rather than bundled.
const COPIED = ["onnxruntime-web", "@niivue/dcm2niix"];

const about = (name) => JSON.parse(readFileSync(join(MODULES, name, "package.json"), "utf8"));
const licenseOf = (name, more = "") => join(HERE, "licenses", `${name.replace("/", "-")}${more}.txt`);

/** Our file of the notices of what a package contains, or null; another release of it may contain something else. */
function thirdParties(name) {
  const start = `${name.replace("/", "-")}-`;
  const ours = readdirSync(join(HERE, "licenses")).filter((file) => file.startsWith(start) && file.endsWith("-third-party.txt"));
  if (ours.length === 0) return null;
  const wanted = licenseOf(name, `-${about(name).version}-third-party`);
  if (existsSync(wanted)) return wanted;
  throw new Error(`${ours[0]} is of another release than the package; put ${basename(wanted)} in its place`);
}

COPIED.forEach(thirdParties); // before all that takes long

const [folder] = process.argv.slice(2);
await mkdir(folder, { recursive: true });

const usual = {
  absWorkingDir: HERE,
  // The package exports only a class with a worker of its own; this is the program itself.
  alias: { dcm2niix: join(MODULES, "@niivue", "dcm2niix", "dist", "dcm2niix.jpeg.js") },
  bundle: true,
  charset: "ascii", // readable in pages of any encoding
  format: "esm",
  legalComments: "none", // all licenses are in the notices
  metafile: true,
  minify: true,
  target: ["chrome113", "firefox115", "safari16.4"],
  logLevel: "warning",
};

/** Leaves ONNX Runtime in its file: its threads are started from the address of the module that it is in. */
const ortBesideIt = {
  name: "ort",
  setup(building) {
    building.onResolve({ filter: /^onnxruntime-web/ }, () => ({ path: `./${ORT}`, external: true }));
  },
};
// dcm2niix looks for Node's modules, in Node alone.
const noNode = {
  name: "node",
  setup(building) {
    building.onResolve({ filter: /^(node:.*|module|fs|path|url|crypto)$/ }, ({ path }) => ({ path, external: true }));
  },
};

// A page from a disk may start classic workers alone. They have no address, and nothing is fetched from beside it.
const classic = { format: "iife", define: { "import.meta.url": '"https://page.invalid/"' } };

const results = [];
for (const [name, entry, more] of [
  ["page.js", "src/main.js", {}],
  ["worker.js", "src/worker.js", { plugins: [ortBesideIt, noNode] }],
  ["worker-with-runtime.js", "src/worker.js", { plugins: [noNode], ...classic }],
]) {
  results.push(await build({ ...usual, entryPoints: [entry], outfile: join(folder, name), ...more }));
}

async function packed(from, name) {
  await writeFile(join(folder, `${name}.gz`), await promisify(gzip)(await readFile(join(MODULES, from)), { level: 9 }));
}

await cp(join(HERE, "src", "index.html"), join(folder, "index.html"));
await cp(join(HERE, "src", "style.css"), join(folder, "style.css"));
await cp(join(MODULES, "onnxruntime-web", "dist", ORT), join(folder, ORT));
await packed("onnxruntime-web/dist/ort-wasm-simd-threaded.asyncify.wasm", "ort-wasm-simd-threaded.asyncify.wasm");
await packed("@niivue/dcm2niix/dist/dcm2niix.jpeg.wasm", "dcm2niix.wasm");

/** Packages in the bundles, and those that were copied. */
function packages() {
  const found = new Set(COPIED);
  for (const { metafile } of results) {
    for (const input of Object.keys(metafile.inputs)) {
      const name = /node_modules\/((?:@[^/]+\/)?[^/]+)\/(?!.*node_modules\/)/.exec(input)?.[1];
      if (name) found.add(name);
    }
  }
  return [...found].sort();
}

async function notice(name) {
  const { version, license } = about(name);
  const ours = licenseOf(name); // of packages that hold none
  const theirs = readdirSync(join(MODULES, name)).find((file) => /^(licen[cs]e|copying)/i.test(file));
  const file = existsSync(ours) ? ours : theirs && join(MODULES, name, theirs);
  if (!file) throw new Error(`${name}: has no license file; add licenses/${basename(ours)}`);
  const files = [file, thirdParties(name)].filter(Boolean);
  const texts = await Promise.all(files.map(async (path) => `${(await readFile(path, "utf8")).trim()}\n`));
  return [`${name} ${version} (${license})\n`, ...texts].join("\n");
}

const notices = await Promise.all(packages().map(notice));
await writeFile(
  join(folder, "THIRD-PARTY-NOTICES.txt"),
  `This page contains the following software.\n\n${notices.join(`\n${"-".repeat(80)}\n\n`)}`,
);
