/** Folders of DICOM files, by dcm2niix, which knows the vendors' ways and all common transfer syntaxes. */

import dcm2niix from "dcm2niix";
import { UserError } from "../errors.js";
import { headerOf, identityOf, suvFactor } from "./headers.js";
import { readNifti } from "./nifti.js";
import { isRightHanded, reversed } from "./upright.js";

const UNITS = { BQML: "Bq/ml", GML: "SUV" };
// What dcm2niix only warns of, but what makes a volume that is not where it seems to be.
const REFUSED = [
  // It shears such series right to within a pixel only.
  [/gantry tilt/i, "its gantry was tilted, which this page does not set right; use dmfnet-fuse, which does"],
  [/Interslice distance varies|Missing images/i, "slices are missing or unevenly spaced; copy or export the whole series again"],
  [/Unable to determine slice direction/i, "its header does not tell the page where its slices lie; use dmfnet-fuse, which reads more kinds"],
];

/** Whether a file is DICOM: by the mark after the preamble. */
export const isDicom = (bytes) => String.fromCharCode(...bytes.subarray(128, 132)) === "DICM";

/** What dcm2niix said about each file that it wrote, by the file's name without its folder and suffix. */
function remarks(said) {
  const found = {};
  let before = [];
  for (const line of said) {
    const made = /^Convert \d+ DICOM as \/out\/(.*) \(/.exec(line);
    if (made) {
      found[made[1]] = before;
      before = [];
    } else {
      before.push(line);
    }
  }
  return found;
}

/** Runs dcm2niix; returns its files by name, with what it said. */
async function converted(files, wasm) {
  const said = [];
  const line = (text) => said.push(text);
  const program = await dcm2niix({ wasmBinary: wasm, print: line, printErr: line, noInitialRun: true });
  program.FS.mkdir("/in");
  program.FS.mkdir("/out");
  // Names of files may name a patient, and dcm2niix writes some into its results.
  files.forEach(({ bytes }, n) => program.FS.createDataFile("/in", `${n}.dcm`, bytes, true, true));
  // With the sidecar comes the series that a volume is of; it stays in this worker.
  program.callMain(["-o", "/out", "-f", "%s_%d", "-z", "n", "-b", "y", "-ba", "n", "-m", "y", "/in"]);
  const made = {};
  for (const name of program.FS.readdir("/out")) {
    if (/\.(nii|json)$/.test(name)) made[name] = program.FS.readFile(`/out/${name}`);
  }
  return { made, said };
}

/** When an image was acquired, as a text whose order is that of time. */
const acquired = ({ AcquisitionDate, AcquisitionTime }) => `${AcquisitionDate} ${AcquisitionTime}`;

/** The volume in HU or SUV where it can be, with what its header says. */
function explained(volume, header) {
  const known = { ...volume, modality: header.Modality || null, identity: identityOf(header) };
  known.frameOfReference = header.FrameOfReferenceUID || null;
  if (volume.channels === 3) return known;
  if (header.Modality === "CT") return { ...known, units: "HU" };
  if (header.Modality !== "PT") return known;
  const { factor, reason } = suvFactor(header);
  if (factor === undefined) {
    return { ...known, units: UNITS[header.Units.toUpperCase()] ?? null, notes: [...volume.notes, `${volume.name}: no SUV: ${reason}`] };
  }
  const scale = Math.fround(factor);
  return { ...known, units: "SUV", values: volume.values.map((value) => value * scale) };
}

/**
 * Reads the volumes in DICOM files.
 *
 * @param {{name: string, bytes: Uint8Array}[]} files
 * @param {ArrayBuffer} wasm dcm2niix's program
 * @returns {Promise<object[]>} volumes as `readNifti` gives them, with modality, units, identity and frameOfReference;
 *   those that cannot be used have a `problem`
 */
export async function readDicom(files, wasm) {
  const headers = {}; // by series; of several bed positions, the first scanned, whose start decay is corrected to
  for (const { bytes } of files) {
    const header = headerOf(bytes);
    if (!header) continue;
    const before = headers[header.SeriesInstanceUID];
    if (!before || acquired(header) < acquired(before)) headers[header.SeriesInstanceUID] = header;
  }
  const { made, said } = await converted(files, wasm);
  const names = Object.keys(made).filter((name) => name.endsWith(".nii"));
  const about = remarks(said);
  const volumes = [];
  let problem = said.filter((text) => /error|warning|unable|no valid/i.test(text)).at(-1)?.trim();
  for (const file of names) {
    const stem = file.slice(0, -4);
    if (/_(Tilt|Eq)(_\d+)?$/.test(stem)) continue; // made of another one, which is refused
    const sidecar = made[`${stem}.json`];
    const { SeriesInstanceUID, SeriesDescription } = sidecar ? JSON.parse(new TextDecoder().decode(sidecar)) : {};
    const refusal = REFUSED.find(([pattern]) => about[stem]?.some((text) => pattern.test(text)));
    if (refusal) {
      problem = `${SeriesDescription ?? stem}: ${refusal[1]}`;
      continue;
    }
    const known = Object.values(headers);
    // The header of another series would give another scale, or another patient.
    const header = headers[SeriesInstanceUID] ?? (known.length === 1 ? known[0] : null);
    if (!header) {
      problem = `${SeriesDescription ?? stem}: its header cannot be read`;
      continue;
    }
    const read = await readNifti(made[file], SeriesDescription ?? stem);
    // dcm2niix turns rows over, and leaves slices in an order of its own; Python has them as DICOM does, sorted.
    const rows = reversed(read, 1);
    volumes.push(explained(isRightHanded(rows.affine) ? rows : reversed(rows, 0), header));
  }
  if (volumes.length === 0) {
    const reason = problem ? ` (${problem})` : "";
    throw new UserError(`${files.length} DICOM file(s) hold no volume that this page can use${reason}; give the folder of one series`);
  }
  return volumes;
}
