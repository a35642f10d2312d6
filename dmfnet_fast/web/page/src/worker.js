/** The worker: answers the page's calls, one after the other; fusing all slices reports progress and can be canceled. */

import { UserError } from "./errors.js";
import { Network } from "./network.js";
import { Session } from "./session.js";

let askedFor = 0; // counts cancellations
let dcm2niix = null;

const session = new Session(async () => {
  if (typeof dcm2niix !== "string") return dcm2niix;
  const answer = await fetch(dcm2niix).catch(() => null);
  if (answer?.ok) return answer.arrayBuffer();
  throw new UserError("dcm2niix.wasm is missing beside the page, or its server has ended, so DICOM cannot be read");
});

const CALLS = {
  async open({ model, provider, wasm, dcm2niix: program }) {
    dcm2niix = program;
    await session.network?.close();
    session.network = await Network.open(model, { provider, wasm });
    session.fused = [];
    const { provider: used, threads, failure } = session.network;
    return { provider: used, threads, failure };
  },
  read: ({ side, files }) => session.read(side, files),
  choose: ({ side, number }) => session.choose(side, number),
  modality: ({ side, modality }) => session.setModality(side, modality),
  result: ({ files }) => session.result(files),
  prepare: (settings) => session.prepare(settings),
  slice: ({ number }) => session.slice(number),
  png: ({ number }) => session.png(number),
  nifti: () => session.nifti(),
  async luminances({ number }) {
    return (await session.fuse(number)).luminances;
  },
  async all(_, report) {
    const before = askedFor;
    const { pair } = session;
    const started = performance.now();
    for (let number = 0; number < pair.slices; number++) {
      // A message of the page can come in only while this waits; its answer is then the next in line.
      await new Promise((resolve) => setTimeout(resolve));
      const goes = await inLine(async () => {
        if (askedFor !== before || session.pair !== pair) return false;
        await session.fuse(number);
        return true;
      });
      if (!goes) return { canceled: true };
      report(number + 1, pair.slices);
    }
    return { canceled: false, milliseconds: performance.now() - started };
  },
};

let last = Promise.resolve();

/** Does something after all that came before; the network computes one image at a time. */
function inLine(action) {
  const result = last.then(action);
  last = result.catch(() => {});
  return result;
}

self.onmessage = ({ data: { id, call, payload } }) => {
  if (call === "cancel") {
    askedFor += 1;
    return;
  }
  const report = (done, of) => self.postMessage({ id, progress: { done, of } });
  const action = () => CALLS[call](payload, report);
  // All slices are many calls: between two of them others are answered.
  (call === "all" ? action() : inLine(action))
    .then((result) => self.postMessage({ id, result }))
    .catch((error) => {
      const known = error instanceof UserError;
      const memory = /memory|allocat|RangeError: Array buffer/i.test(String(error));
      const message = known ? error.message : memory ? "the browser ran out of memory; use smaller images" : `${error.message ?? error}`;
      self.postMessage({ id, error: message });
    });
};
