/** The page: takes files, asks the worker, shows what it answers. */

import { Client } from "./client.js";
import { contents, dropped, save } from "./files.js";
import { isOneFile, json, resource, sha256, startWorker } from "./resources.js";
import { Viewer } from "./viewer.js";
import { PALETTES } from "./volumes/palettes.js";

const NETWORK = "network.onnx";
const RUNTIME = "ort-wasm-simd-threaded.asyncify.wasm";
const DCM2NIIX = "dcm2niix.wasm";
const FETCHED_AT_ONCE = 32;
const EXAMPLE = { a: "example-mri.png", b: "example-pet.png" };

const $ = (id) => document.getElementById(id);
const all = (selector) => [...document.querySelectorAll(selector)];
const source = (side) => $(`source-${side}`);

const state = {
  client: null,
  model: null,
  runs: null, // what the network runs on
  given: { a: null, b: null }, // the files chosen last
  loaded: { a: null, b: null },
  names: { a: "", b: "" },
  pair: null,
  slice: 0,
  drawn: null,
  notes: { a: [], b: [] },
  warnings: [], // of the images
};

function showError(error) {
  $("error").textContent = error ? (error.message ?? String(error)) : "";
  $("error").hidden = !error;
}

/** What to know of the images, after what to know of this computer. */
function showWarnings() {
  const computes = !document.body.classList.contains("of-result");
  const failure = computes && state.runs?.failure;
  const warnings = failure ? [`The GPU (WebGPU) is not used: ${failure}. The CPU computes instead.`, ...state.warnings] : state.warnings;
  $("warnings").replaceChildren(
    ...warnings.map((text) => Object.assign(document.createElement("li"), { textContent: text })),
  );
  $("warnings").hidden = warnings.length === 0;
}

/** Runs what a gesture asks for; its error is shown. */
async function attempt(action) {
  try {
    await action();
  } catch (error) {
    showError(error);
  }
}

const attemptBusily = (action) => attempt(() => busily(action));

let working = 0;

/** Does what changes the images; meanwhile the viewer is said to be busy. */
async function busily(action) {
  working += 1;
  $("view").setAttribute("aria-busy", "true");
  try {
    await action();
  } finally {
    working -= 1;
    $("view").setAttribute("aria-busy", String(working > 0));
  }
}

const number = (id) => ($(id).value === "" ? null : Number($(id).value));

function range(side) {
  const [low, high] = [number(`low-${side}`), number(`high-${side}`)];
  if ((low === null) !== (high === null)) throw new Error("black and white: give both values, or neither");
  return low === null ? null : [low, high];
}

const settings = () => ({
  rangeA: range("a"),
  rangeB: range("b"),
  grid: $("grid").value,
  colormap: $("colormap").value,
  keptChroma: $("chroma").valueAsNumber / 100,
  invention: $("invention").checked,
});

const milliseconds = (value) => `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;

function showStatus(times = null) {
  if (!state.runs || document.body.classList.contains("of-result")) return;
  const { provider, threads } = state.runs;
  const where = provider === "webgpu" ? "the GPU (WebGPU)" : `the CPU (WASM, ${threads} thread${threads === 1 ? "" : "s"})`;
  const took = times ? `: network ${milliseconds(times.network)}, whole slice ${milliseconds(times.all)}` : "";
  $("status").textContent = `Runs on ${where}${took}.`;
}

async function openNetwork() {
  const provider = $("provider").value;
  const wasm = isOneFile() ? await resource(RUNTIME) : null;
  const dcm2niix = isOneFile() ? await resource(DCM2NIIX) : new URL(DCM2NIIX, location.href).href;
  const opened = await state.client.call("open", { model: state.model, provider, wasm, dcm2niix });
  state.runs = opened;
  showStatus();
  showWarnings();
}

/** Reads files for one side, and fuses if the other side has some. */
async function give(side, files) {
  showError(null);
  const box = source(side).querySelector(".name");
  state.given[side] = files;
  state.loaded[side] = state.pair = null;
  $("view").hidden = true;
  const shownName = files.length === 1 ? files[0].name : `${files.length} files`;
  box.textContent = `Reading ${shownName} ...`;
  try {
    await loaded; // over a slow line, the files may be there before the network
    cancel();
    const read = await contents(files);
    if (state.given[side] !== files) return; // others were chosen meanwhile
    const found = await state.client.call("read", { side, files: read });
    if (state.given[side] !== files) return;
    state.names[side] = files.length === 1 ? files[0].name : "volume";
    take(side, found);
  } catch (error) {
    if (state.given[side] !== files) return;
    box.textContent = `${shownName} cannot be used`;
    throw error;
  }
  await prepare();
}

function take(side, found) {
  const { choices, chosen, volume, modality, notes } = found;
  const box = source(side);
  state.loaded[side] = found;
  state.notes[side] = notes;
  box.querySelector(".name").textContent = choices[chosen];
  const select = box.querySelector(".choices");
  select.replaceChildren(...choices.map((text, n) => new Option(text, n, n === chosen, n === chosen)));
  box.querySelector(".which").hidden = choices.length < 2;
  for (const end of ["low", "high"]) $(`${end}-${side}`).value = "";
  if (side === "b") {
    // Only files that do not say what they are of are asked about.
    box.querySelector(".modality").hidden = !volume || modality !== null;
    box.querySelector(".modality select").value = "";
    box.querySelector(".modality .hint").hidden = false;
  }
}

/** Puts both sources together, and shows a slice. */
async function prepare() {
  const { a, b } = state.loaded;
  if (!a || !b) return;
  showError(null);
  await busily(async () => {
    cancel();
    const before = state.pair;
    state.pair = null;
    await showPair(await state.client.call("prepare", settings()), before);
  });
}

async function showPair(pair, before) {
  state.pair = pair;
  const same = before && before.slices === pair.slices && before.width === pair.width && before.height === pair.height;
  if (!same) {
    state.slice = Math.floor(pair.slices / 2);
    viewer.place = null;
  }
  viewer.aspect = pair.aspect;
  viewer.letters = pair.letters;
  $("slice").max = pair.slices - 1;
  $("slice").value = state.slice;
  for (const element of all(".for-volume")) element.hidden = !pair.volume;
  $("save-nifti").disabled = true;
  pair.values.forEach(([low, high], n) => {
    const side = "ab"[n];
    [$(`low-${side}`).placeholder, $(`high-${side}`).placeholder] = [low, high].map((value) => String(Number(value.toPrecision(5))));
    for (const end of ["low", "high"]) $(`${end}-${side}`).disabled = pair.eightBit[n];
  });
  state.warnings = [...state.notes.a, ...state.notes.b, ...pair.warnings];
  showWarnings();
  await showSlice();
  $("view").hidden = false;
}

/** Shows a slice, fused anew if need be. While one is drawn, only the last wish of several is kept. */
async function showSlice() {
  const wanted = state.slice;
  const pair = state.pair;
  if (!pair) return; // other files are being read, or put together
  const drawn = await state.client.call("slice", { number: wanted });
  if (state.pair !== pair || state.slice !== wanted) return;
  state.drawn = drawn;
  viewer.images = drawn;
  viewer.draw();
  $("slice-number").textContent = `${wanted + 1} of ${pair.slices}`;
  showReadout();
  showStatus(drawn.milliseconds);
}

let showing = false;
let again = false;

async function refresh() {
  if (showing) {
    again = true;
    return;
  }
  showing = true;
  try {
    await busily(async () => {
      do {
        again = false;
        await showSlice();
      } while (again);
    });
  } catch (error) {
    showError(error);
  } finally {
    showing = false;
  }
}

function toSlice(wanted) {
  if (!state.pair) return;
  const slice = Math.min(Math.max(wanted, 0), state.pair.slices - 1);
  if (slice === state.slice) return;
  state.slice = slice;
  $("slice").value = slice;
  refresh();
}

const format = (value) => (Number.isInteger(value) ? String(value) : value.toPrecision(4));

function showReadout() {
  const { place } = viewer;
  if (!place || !state.drawn) {
    $("readout").textContent = "Click on an image to read its values.";
    return;
  }
  const { pair, drawn, slice } = state;
  const at = place.y * pair.width + place.x;
  const values = drawn.raw.flatMap((image, n) => {
    if (image === null) return [];
    const read = image.channels === 3 ? [...image.data.slice(3 * at, 3 * at + 3)] : [image.data[at]];
    const unit = n < 2 && pair.units[n] ? ` ${pair.units[n]}` : "";
    return [`${["MRI", "other", "fused"][n]} ${read.map(format).join(" ")}${unit}`];
  });
  let where = `x ${place.x}, y ${place.y}`;
  if (pair.fit) {
    const m = pair.fit.affine;
    const mm = [0, 4, 8].map((row) => m[row] * slice + m[row + 1] * place.y + m[row + 2] * place.x + m[row + 3]);
    where += `, slice ${slice + 1} (left ${mm[0].toFixed(1)}, back ${mm[1].toFixed(1)}, up ${mm[2].toFixed(1)} mm)`;
  }
  $("readout").textContent = `${where}: ${values.join(", ")}`;
}

const viewer = new Viewer($("stage"), {
  moved(place) {
    viewer.place = place;
    viewer.draw();
    showReadout();
  },
  divided: (percent) => setDivider(percent),
  windowed: (level, width) => setLevels(level, width),
  scrolled: (step) => toSlice(state.slice + step),
});

function setDivider(percent) {
  viewer.divider = Math.min(Math.max(percent, 0), 100);
  $("divider").value = viewer.divider;
  viewer.draw();
}

function setLevels(level, width) {
  $("level").value = level;
  $("window").value = width;
  viewer.levels = { level: $("level").valueAsNumber, width: $("window").valueAsNumber };
  viewer.draw();
}

function setMode(mode) {
  viewer.mode = mode;
  for (const input of all("#modes input")) input.checked = input.value === mode;
  for (const element of all(".for-two")) element.hidden = mode !== "overlay" && mode !== "swipe";
  for (const element of all(".for-overlay")) element.hidden = mode !== "overlay";
  for (const element of all(".for-swipe")) element.hidden = mode !== "swipe";
  viewer.draw();
}

function cancel() {
  state.client.cancel();
}

/** The pair that is shown; what is saved or fused while another is being put together would not be what is seen. */
function shownPair() {
  if (!state.pair) throw new Error("the images are still being prepared; try again when they are shown");
  return state.pair;
}

async function fuseAll() {
  const pair = shownPair();
  showError(null);
  $("fuse-all").disabled = true;
  $("progress").hidden = $("cancel").hidden = false;
  $("progress").value = 0;
  try {
    const done = await state.client.call("all", {}, (count, of) => {
      if (state.pair !== pair) return;
      Object.assign($("progress"), { max: of, value: count });
      $("status").textContent = `Fused ${count} of ${of} slices.`;
    });
    if (state.pair !== pair) return; // other files or settings, by which everything fused was dropped
    if (done.canceled) {
      $("status").textContent = "Canceled; the slices fused so far are kept.";
    } else {
      $("save-nifti").disabled = false;
      const each = done.milliseconds / pair.slices;
      $("status").textContent = `Fused ${pair.slices} slices in ${(done.milliseconds / 1000).toFixed(1)} s, ${milliseconds(each)} each.`;
    }
  } finally {
    $("fuse-all").disabled = false;
    $("progress").hidden = $("cancel").hidden = true;
  }
}

const stem = (side) => state.names[side].replace(/(\.nii)?\.[^.]+$/, "") || "image";

async function savePng() {
  const suffix = shownPair().volume ? `-slice-${state.slice + 1}` : "";
  save(await state.client.call("png", { number: state.slice }), `${stem("b")}-fused${suffix}.png`, "image/png");
}

async function saveNifti() {
  shownPair();
  save(await state.client.call("nifti"), `${stem("b")}-fused.nii.gz`, "application/gzip");
}

function onKey(event) {
  if (event.altKey || event.ctrlKey || event.metaKey || !state.pair) return;
  const steps = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] };
  const step = steps[event.key];
  const { width, height } = state.pair;
  if (step && event.shiftKey) {
    const from = viewer.place ?? { x: Math.floor(width / 2), y: Math.floor(height / 2) };
    const x = Math.min(Math.max(from.x + step[0], 0), width - 1);
    viewer.tell.moved({ x, y: Math.min(Math.max(from.y + step[1], 0), height - 1) });
  } else if (step && step[1]) {
    toSlice(state.slice + step[1]);
  } else if (step && viewer.mode === "swipe") {
    setDivider(viewer.divider + 2 * step[0]);
  } else if (step && viewer.mode === "overlay") {
    setOpacity(viewer.opacity + 2 * step[0]);
  } else if (event.key === "PageUp" || event.key === "PageDown") {
    toSlice(state.slice + (event.key === "PageUp" ? -10 : 10));
  } else if (event.key === "Escape") {
    viewer.place = null;
    viewer.draw();
    showReadout();
  } else {
    return;
  }
  event.preventDefault();
}

function setOpacity(percent) {
  viewer.opacity = Math.min(Math.max(percent, 0), 100);
  $("opacity").value = viewer.opacity;
  viewer.draw();
}

function listen() {
  for (const side of ["a", "b"]) {
    const box = source(side);
    for (const input of box.querySelectorAll("input[type=file]")) {
      input.addEventListener("change", () => {
        const files = [...input.files];
        input.value = "";
        if (files.length) attempt(() => give(side, files));
      });
    }
    box.querySelector(".choices").addEventListener("change", (event) =>
      attemptBusily(async () => {
        state.pair = null;
        const files = state.given[side];
        const found = await state.client.call("choose", { side, number: Number(event.target.value) });
        if (state.given[side] !== files) return; // others were chosen meanwhile
        take(side, found);
        await prepare();
      }),
    );
    box.addEventListener("dragover", (event) => {
      event.preventDefault();
      box.classList.add("over");
    });
    box.addEventListener("dragleave", () => box.classList.remove("over"));
    box.addEventListener("drop", (event) => {
      event.preventDefault();
      box.classList.remove("over");
      attempt(async () => give(side, await dropped(event.dataTransfer)));
    });
  }
  // A file that is dropped beside the boxes would replace the page.
  for (const kind of ["dragover", "drop"]) document.addEventListener(kind, (event) => event.preventDefault());
  $("source-b").querySelector(".modality select").addEventListener("change", (event) =>
    attemptBusily(async () => {
      event.target.nextElementSibling.hidden = event.target.value !== "";
      await state.client.call("modality", { side: "b", modality: event.target.value || null });
      await prepare();
    }),
  );
  $("example").addEventListener("click", () => attempt(showExample));
  for (const input of all("#modes input")) input.addEventListener("change", () => setMode(input.value));
  for (const id of ["under", "over"]) {
    $(id).addEventListener("change", () => {
      viewer.pair[id] = $(id).value;
      viewer.draw();
    });
  }
  $("opacity").addEventListener("input", () => setOpacity($("opacity").valueAsNumber));
  $("divider").addEventListener("input", () => setDivider($("divider").valueAsNumber));
  for (const id of ["level", "window"]) {
    $(id).addEventListener("input", () => setLevels($("level").valueAsNumber, $("window").valueAsNumber));
  }
  $("reset").addEventListener("click", () => setLevels(50, 100));
  $("slice").addEventListener("input", () => toSlice($("slice").valueAsNumber));
  $("stage").addEventListener("keydown", onKey);
  $("save-png").addEventListener("click", () => attempt(savePng));
  $("save-nifti").addEventListener("click", () => attempt(saveNifti));
  $("fuse-all").addEventListener("click", () => attempt(fuseAll));
  $("cancel").addEventListener("click", cancel);
  $("chroma").addEventListener("input", () => ($("chroma-value").textContent = `${$("chroma").value}%`));
  for (const id of ["low-a", "high-a", "low-b", "high-b", "chroma", "invention", "grid", "colormap"]) {
    $(id).addEventListener("change", () => attempt(prepare));
  }
  $("provider").addEventListener("change", () =>
    attempt(async () => {
      showError(null);
      cancel();
      $("save-nifti").disabled = true; // slices are fused anew
      state.runs = null;
      $("status").textContent = "Loading the network ...";
      try {
        await openNetwork();
      } finally {
        if (state.pair) await refresh();
      }
    }),
  );
}

async function showExample() {
  for (const side of ["a", "b"]) await give(side, [new File([await resource(EXAMPLE[side])], EXAMPLE[side])]);
}

/** The listed files. A few at once: browsers refuse thousands of requests, as a large DICOM folder would make. */
async function fetched(listed) {
  const one = async ({ path, name }) => {
    try {
      return new File([await resource(path)], name);
    } catch {
      throw new Error(`${name}: cannot be read any more; start dmfnet-view again`);
    }
  };
  const files = [];
  for (let n = 0; n < listed.length; n += FETCHED_AT_ONCE) {
    files.push(...(await Promise.all(listed.slice(n, n + FETCHED_AT_ONCE).map(one))));
  }
  return files;
}

/** Loads what the address asks for: #open=FILE names a list of files for each side, or of a result with links. */
async function openListed() {
  const name = new URLSearchParams(location.hash.slice(1)).get("open");
  if (!name) return;
  const listed = await json(name);
  if (listed.result) {
    await showResult(listed);
    return;
  }
  for (const side of ["a", "b"]) await give(side, await fetched(listed[side]));
}

/** Shows a result of dmfnet-fuse alone. */
async function showResult({ result, links }) {
  document.body.classList.add("of-result");
  $("title").textContent = "Fused volume";
  $("links").replaceChildren(
    ...links.map(({ path, name }) => Object.assign(document.createElement("a"), { href: path, textContent: name, target: "_blank" })),
  );
  $("links").hidden = false;
  setMode("fused");
  const files = await fetched(result);
  state.names.b = files[0].name;
  await showPair(await state.client.call("result", { files: await contents(files) }), null);
  $("status").textContent = "Shows a result of dmfnet-fuse; nothing is computed.";
}

/** Loads the network into a worker. */
async function load() {
  const manifest = await json("manifest.json");
  state.model = await resource(NETWORK);
  const hash = await sha256(state.model);
  if (hash !== null && hash !== manifest.files[NETWORK].sha256) throw new Error(`${NETWORK} is damaged: copy the page again`);
  $("about").textContent =
    `dmfnet-fast ${manifest.version}, network ${manifest.network.name}, weights ${manifest.network.weights.slice(0, 12)}. ` +
    "Not a medical device.";
  state.client = new Client(await startWorker());
  await openNetwork();
}

for (const name of PALETTES) $("colormap").append(new Option(name.replaceAll("-", " "), name));
listen();
setMode("side");
$("status").textContent = "Loading the network ...";
const loaded = load();
loaded.then(() => attempt(openListed)).catch((error) => {
  $("status").textContent = "The network is not loaded.";
  showError(error);
});
