/** What of DICOM's headers dcm2niix does not pass on: whom a series is of, where it was, and a PET's way to SUV. */

import dicomParser from "dicom-parser";

const PIXEL_DATA = "x7fe00010";
const TAGS = {
  Modality: "x00080060",
  SeriesInstanceUID: "x0020000e",
  FrameOfReferenceUID: "x00200052",
  PatientName: "x00100010",
  PatientID: "x00100020",
  IssuerOfPatientID: "x00100021",
  PatientBirthDate: "x00100030",
  PatientWeight: "x00101030",
  Units: "x00541001",
  SUVType: "x00541006",
  CorrectedImage: "x00280051",
  DecayCorrection: "x00541102",
  SeriesDate: "x00080021",
  SeriesTime: "x00080031",
  AcquisitionDate: "x00080022",
  AcquisitionTime: "x00080032",
};
const DOSE_ITEMS = "x00540016";
const DOSE_TAGS = {
  RadionuclideTotalDose: "x00181074",
  RadionuclideHalfLife: "x00181075",
  RadiopharmaceuticalStartDateTime: "x00181078",
  RadiopharmaceuticalStartTime: "x00181072",
};

const texts = (dataset, tags) =>
  Object.fromEntries(Object.entries(tags).map(([keyword, tag]) => [keyword, dataset.string(tag)?.trim() ?? ""]));

/** Texts of a file's header by keyword, with those of its first radiopharmaceutical in `dose`; null where it is damaged. */
export function headerOf(bytes) {
  try {
    const dataset = dicomParser.parseDicom(bytes, { untilTag: PIXEL_DATA });
    const item = dataset.elements[DOSE_ITEMS]?.items?.[0]?.dataSet;
    return { ...texts(dataset, TAGS), dose: item ? texts(item, DOSE_TAGS) : null };
  } catch {
    return null;
  }
}

/** What tells patients apart, without empty values. It is compared and never shown. */
export function identityOf(header) {
  const { PatientID, IssuerOfPatientID, PatientBirthDate } = header;
  const PatientName = header.PatientName.replace(/[\^=]/g, " ").split(/\s+/).filter(Boolean).join(" ").toLowerCase();
  return Object.fromEntries(
    Object.entries({ PatientID, PatientName, PatientBirthDate, IssuerOfPatientID }).filter(([, value]) => value),
  );
}

/** Milliseconds of DICOM's date and time; NaN where they are not valid. */
function moment(date, time) {
  const parts = /^(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)(\.\d+)?/.exec(date + time.split(/[+-]/)[0]);
  if (!parts) return Number.NaN;
  const [year, month, day, hour, minute, second] = parts.slice(1, 7).map(Number);
  return Date.UTC(year, month - 1, day, hour, minute, second) + 1000 * Number(parts[7] ?? 0);
}

/** Seconds from giving the tracer to the time that decay is corrected to; NaN where that is not known. */
function elapsed(header) {
  const { SeriesDate, SeriesTime, AcquisitionDate, AcquisitionTime, dose } = header;
  const acquired = moment(AcquisitionDate || SeriesDate, AcquisitionTime);
  let start = moment(SeriesDate, SeriesTime);
  if (Number.isNaN(start) || start > acquired) start = acquired;
  const whole = dose.RadiopharmaceuticalStartDateTime;
  let given = moment(whole.slice(0, 8), whole.slice(8));
  if (Number.isNaN(given) && !Number.isNaN(start)) {
    given = moment(new Date(start).toISOString().slice(0, 10).replaceAll("-", ""), dose.RadiopharmaceuticalStartTime);
    if (given > start) given -= 24 * 3600 * 1000; // past midnight
  }
  return (start - given) / 1000;
}

/**
 * What takes a PET's values to SUV by body weight, or the reason why that is unknown; `dmfnet_fast.volumes.suv`.
 *
 * @returns {{factor: number} | {reason: string}}
 */
export function suvFactor(header) {
  const units = header.Units.toUpperCase();
  if (units === "GML" && ["", "BW"].includes(header.SUVType.toUpperCase())) return { factor: 1 };
  if (units !== "BQML") return { reason: `its values are in ${units || "unknown units"}, not in Bq/ml` };
  const corrections = header.CorrectedImage.toUpperCase().split("\\");
  if (!corrections.includes("ATTN") || !corrections.includes("DECY")) {
    return { reason: "it is not corrected for attenuation and decay" };
  }
  const weight = Number(header.PatientWeight);
  const dose = Number(header.dose?.RadionuclideTotalDose);
  const halfLife = Number(header.dose?.RadionuclideHalfLife);
  if (!(weight > 0 && dose > 0 && halfLife > 0)) return { reason: "it says no weight, no dose or no half-life" };
  const correction = header.DecayCorrection.toUpperCase();
  if (correction !== "START" && correction !== "ADMIN") {
    return { reason: "it does not say to which time its decay was corrected" };
  }
  const seconds = correction === "START" ? elapsed(header) : 0;
  if (Number.isNaN(seconds)) return { reason: "it does not say when the tracer was given or the scan began" };
  // A dose in MBq, or a weight in g, is a thousand times or more off.
  const plausible = dose > 1e5 && dose < 1e11 && weight > 0.3 && weight < 500 && seconds >= 0 && seconds < 10 * halfLife;
  if (!plausible) return { reason: "its weight, dose or times are implausible" };
  return { factor: (weight * 1000) / (dose * 2 ** (-seconds / halfLife)) };
}
