/** Folders of DICOM files, by dcm2niix, which knows the vendors' ways and all common transfer syntaxes. */

import dcm2niix from "dcm2niix";
import { UserError } from "../errors.js";
import { readNifti } from "./nifti.js";

const UNITS = { CT: "HU" };

/** Whether a file is DICOM: by the mark after the preamble. */
export const isDicom = (bytes) => String.fromCharCode(...bytes.subarray(128, 132)) === "DICM";

/**
 * Reads the volumes in DICOM files.
 *
 * @param {{name: string, bytes: Uint8Array}[]} files
 * @param {ArrayBuffer} wasm dcm2niix's program
 * @returns {Promise<object[]>} volumes as `readNifti` gives them, with modality and description
 */
export async function readDicom(files, wasm) {
  const said = [];
  const line = (text) => said.push(text);
  const program = await dcm2niix({ wasmBinary: wasm, print: line, printErr: line, noInitialRun: true });
  program.FS.mkdir("/in");
  program.FS.mkdir("/out");
  // The names of files may name a patient, and dcm2niix writes some into its results.
  files.forEach(({ bytes }, n) => program.FS.createDataFile("/in", `${n}.dcm`, bytes, true, true));
  const code = program.callMain(["-o", "/out", "-f", "%s_%d", "-z", "n", "-b", "y", "-ba", "y", "-m", "y", "/in"]);
  const made = program.FS.readdir("/out").filter((name) => name.endsWith(".nii"));
  if (made.length === 0) {
    const reason = said.filter((text) => /error|warning|unable|no valid/i.test(text)).at(-1);
    throw new UserError(
      `${files[0].name}: dcm2niix finds no volume in ${files.length} DICOM file(s)` +
        `${reason ? ` (${reason.trim()})` : code ? ` (code ${code})` : ""}; give the folder of one whole series`,
    );
  }
  const volumes = [];
  for (const file of made) {
    const stem = file.slice(0, -4);
    // A tilted gantry is sheared right in a second file, uneven spacing evened; the first one is not to be used then.
    if (made.includes(`${stem}_Tilt.nii`) || made.includes(`${stem}_Eq.nii`)) continue;
    let about = {};
    try {
      about = JSON.parse(program.FS.readFile(`/out/${stem}.json`, { encoding: "utf8" }));
    } catch {
      about = {};
    }
    const volume = await readNifti(program.FS.readFile(`/out/${file}`), about.SeriesDescription ?? stem);
    const modality = about.Modality ?? null;
    volumes.push({ ...volume, modality, units: volume.channels === 1 ? (UNITS[modality] ?? null) : null });
  }
  return volumes;
}
