/** The worker: answers the page's calls, one after the other; long ones report progress and can be canceled. */

import { UserError } from "./errors.js";
import { Network } from "./network.js";
import { Session } from "./session.js";

let askedFor = 0; // counts cancellations
let dcm2niix = null;

const session = new Session(async () => {
  if (typeof dcm2niix !== "string") return dcm2niix;
  const answer = await fetch(dcm2niix);
  if (!answer.ok) throw new UserError(`${dcm2niix} is missing beside the page, so DICOM cannot be read; export the page again`);
  return answer.arrayBuffer();
});

const CALLS = {
  async open({ model, provider, wasm, dcm2niix: program }) {
    dcm2niix = program;
    await session.network?.close();
    session.network = await Network.open(model, { provider, wasm });
    session.fused = [];
    const { provider: used, threads, failures } = session.network;
    return { provider: used, threads, failures };
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
      // A message of the page can come in only while this waits.
      await new Promise((resolve) => setTimeout(resolve));
      if (askedFor !== before || session.pair !== pair) return { canceled: true };
      await session.fuse(number);
      report(number + 1, pair.slices);
    }
    return { canceled: false, milliseconds: performance.now() - started };
  },
};

let last = Promise.resolve();

self.onmessage = ({ data: { id, call, payload } }) => {
  if (call === "cancel") {
    askedFor += 1;
    return;
  }
  const report = (done, of) => self.postMessage({ id, progress: { done, of } });
  last = last.then(async () => {
    try {
      self.postMessage({ id, result: await CALLS[call](payload, report) });
    } catch (error) {
      const known = error instanceof UserError;
      const memory = /memory|allocat|RangeError: Array buffer/i.test(String(error));
      const message = known ? error.message : memory ? "the browser ran out of memory; use smaller images" : `${error.message ?? error}`;
      self.postMessage({ id, error: message });
    }
  });
};
