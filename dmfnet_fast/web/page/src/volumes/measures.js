/** Foregrounds and ranges of volumes; `dmfnet_fast.volumes.measures` and `display` in JavaScript. */

import { UserError } from "../errors.js";
import { extent, percentiles } from "../numbers.js";

const MOST_SAMPLES = 2_000_000;
const CT_FOREGROUND = -300; // above air and below skin, in HU
const CT_RANGE = [-100, 500]; // shows brain and bone
const TOP_PERCENTILE = 99.8;

/** Whether a volume shows a tracer: PET and SPECT. */
export const isTracer = ({ modality, units }) => modality === "PT" || modality === "NM" || units === "SUV";

/** At most about two million luminances, evenly taken. */
function sampled({ values, channels }) {
  const count = values.length / channels;
  const step = Math.max(1, Math.floor(count / MOST_SAMPLES));
  const result = new Float32Array(Math.ceil(count / step));
  for (let n = 0, at = 0; at < count; n++, at += step) result[n] = luminanceAt(values, channels, at);
  return result;
}

export function luminanceAt(values, channels, n) {
  if (channels === 1) return values[n];
  return 0.299 * values[3 * n] + 0.587 * values[3 * n + 1] + 0.114 * values[3 * n + 2];
}

/** The value that separates the head from the air: -300 HU for CT, else halfway from the least value to Otsu's. */
export function foregroundThreshold(volume) {
  if (volume.units === "HU") return CT_FOREGROUND;
  const values = sampled(volume);
  const [low, upper] = percentiles(values, [0, 99.5]);
  let high = upper > low ? upper : extent(values)[1];
  high = Math.max(high, low + 1e-6);
  const bins = 256;
  const width = (high - low) / bins;
  const counts = new Float64Array(bins);
  for (const value of values) counts[Math.min(bins - 1, Math.max(0, Math.floor((Math.min(value, high) - low) / width)))] += 1;
  const center = (n) => low + (n + 0.5) * width;
  const total = values.length;
  const sum = counts.reduce((all, count, n) => all + count * center(n), 0);
  let below = 0;
  let sumBelow = 0;
  let best = -1;
  let otsu = center(0);
  for (let n = 0; n < bins; n++) {
    below += counts[n];
    sumBelow += counts[n] * center(n);
    const above = total - below;
    const between = above > 0 && below > 0 ? below * above * (sumBelow / below - (sum - sumBelow) / above) ** 2 : 0;
    if (between > best) {
      best = between;
      otsu = center(n);
    }
  }
  return low + (otsu - low) / 2;
}

/** Units of a volume that is said to be CT: only Hounsfield units reach that far below water. */
export function unitsOfCt({ channels, values }) {
  return channels === 1 && extent(values)[0] < CT_FOREGROUND ? "HU" : null;
}

/** The values shown as black and as white, one pair for the whole volume. */
export function displayRange(volume) {
  if (volume.channels === 3) return [0, 255];
  if (volume.units === "HU") return CT_RANGE;
  const values = sampled(volume);
  const threshold = foregroundThreshold(volume);
  const head = values.filter((value) => value > threshold);
  let high = head.length ? percentiles(head, [TOP_PERCENTILE])[0] : extent(values)[1];
  if (volume.units === "SUV") high = Math.ceil(high * 2) / 2;
  const low = isTracer(volume) ? 0 : percentiles(values, [1])[0];
  if (!(high > low)) throw new UserError(`${volume.name}: shows nothing: its values lie at ${low}; check the file`);
  return [low, high];
}
