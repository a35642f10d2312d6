/** The network on ONNX Runtime: WebGPU or WASM. */

import * as ort from "onnxruntime-web/webgpu";
import { pad, crop } from "./padding.js";
import { Canvas } from "./rules.js";

const MOST_THREADS = 8;
// By how much luminances in [-1, 1] that WebGPU computes may differ from those of WASM. A gray level is 8e-3.
const TOLERANCE = 1e-3;
const CHECKED_SIZE = 64;

/** All of a few cores, of many as many as there are without those that share a core. */
const threadsOf = (cores) => (cores <= 4 ? cores : Math.min(Math.ceil(cores / 2), MOST_THREADS));

/** A hardware GPU, or null: a software adapter is slower than WASM. */
async function adapter() {
  const found = await globalThis.navigator?.gpu?.requestAdapter().catch(() => null);
  return found && !(found.info?.isFallbackAdapter ?? found.isFallbackAdapter) ? found : null;
}

/** A made-up pair, the same every time: gray levels that rise, fall and jump, without limits to what is fused of them. */
function checkedPair() {
  const size = CHECKED_SIZE;
  const image = (level) => ({
    width: size,
    height: size,
    channels: 1,
    data: Uint8Array.from({ length: size * size }, (_, n) => level(n % size, Math.floor(n / size))),
  });
  const a = image((x, y) => (x * 3 + ((y >> 3) & 1) * 60) % 256);
  const b = image((x, y) => (Math.hypot(x - 32, y - 32) < 20 ? 230 - 4 * Math.abs(x - y) : (x * y * 7) % 50));
  return new Canvas(a, b, [0, 255], [0, 255], { keptChroma: 0, invention: true });
}

/** The largest difference between what two networks fuse of a made-up pair; NaN if one of them gives NaN. */
async function difference(one, other) {
  const pair = checkedPair();
  const expected = await other.run(pair);
  return (await one.run(pair)).reduce((most, value, n) => Math.max(most, Math.abs(value - expected[n])), 0);
}

export class Network {
  /**
   * Opens a network. What WebGPU computes of a made-up pair is compared with WASM first, as drivers have faults: where it
   * is wrong or fails, the network runs on WASM, and `failure` says why.
   *
   * @param {ArrayBuffer} model the content of the .onnx file
   * @param {{provider: "auto" | "webgpu" | "wasm", wasm: ArrayBuffer | null}} options `wasm` is the runtime, where it
   *   is not to be fetched
   */
  static async open(model, { provider, wasm }) {
    if (wasm) ort.env.wasm.wasmBinary = wasm;
    const cores = globalThis.navigator?.hardwareConcurrency ?? 1;
    // Threads share memory, which a browser allows to pages that are isolated from others by their server's headers.
    const threads = globalThis.crossOriginIsolated && !wasm ? threadsOf(cores) : 1;
    ort.env.wasm.numThreads = threads;
    ort.env.logLevel = "error";
    const wanted = provider === "auto" ? ((await adapter()) ? "webgpu" : "wasm") : provider;
    const on = async (used) => {
      const options = { executionProviders: [used], logSeverityLevel: 3 };
      const session = await ort.InferenceSession.create(new Uint8Array(model), options);
      return new Network(session, used, used === "wasm" ? threads : 0);
    };
    const safe = await on("wasm");
    if (wanted === "wasm") return safe;
    let fast = null;
    try {
      fast = await on("webgpu");
      const off = await difference(fast, safe);
      if (off <= TOLERANCE) {
        await safe.close();
        return fast;
      }
      safe.failure = `it computes a test image wrongly, by ${off.toPrecision(2)} where ${TOLERANCE} is allowed`;
    } catch (error) {
      safe.failure = `${error.message ?? error}`;
    }
    await fast?.close().catch(() => {}); // a GPU that failed may fail again
    return safe;
  }

  constructor(session, provider, threads) {
    this.session = session;
    this.provider = provider;
    this.threads = threads;
    this.failure = null; // why it does not run on WebGPU, which was wanted
  }

  /** Fused luminances (Float32Array) of a pair, given as a `Canvas`. */
  async run(canvas) {
    const { height, width } = canvas;
    const a = pad([canvas.a], height, width);
    const known = { a: a.data, b: pad([canvas.b], height, width).data };
    if (this.session.inputNames.includes("interval")) known.interval = pad(canvas.interval(), height, width).data;
    const feeds = {};
    for (const [name, data] of Object.entries(known)) {
      const channels = data.length / (a.height * a.width);
      feeds[name] = new ort.Tensor("float32", data, [1, channels, a.height, a.width]);
    }
    const { fused } = await this.session.run(feeds);
    const data = await fused.getData();
    return crop(data, a, height, width);
  }

  async close() {
    await this.session.release();
  }
}
