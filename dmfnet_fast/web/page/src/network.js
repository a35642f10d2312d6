/** The network on ONNX Runtime: WebGPU or WASM. */

import * as ort from "onnxruntime-web/webgpu";
import { pad, crop } from "./padding.js";

const MOST_THREADS = 8;

/** All of a few cores, of many as many as there are without those that share a core. */
const threadsOf = (cores) => (cores <= 4 ? cores : Math.min(Math.ceil(cores / 2), MOST_THREADS));

/** A hardware GPU, or null: a software adapter is slower than WASM. */
async function adapter() {
  const found = await globalThis.navigator?.gpu?.requestAdapter().catch(() => null);
  return found && !(found.info?.isFallbackAdapter ?? found.isFallbackAdapter) ? found : null;
}

export class Network {
  /**
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
    const failures = [];
    for (const used of wanted === "webgpu" ? ["webgpu", "wasm"] : ["wasm"]) {
      try {
        const options = { executionProviders: [used], logSeverityLevel: 3 };
        const session = await ort.InferenceSession.create(new Uint8Array(model), options);
        return new Network(session, used, used === "wasm" ? threads : 0, failures);
      } catch (error) {
        failures.push(`${used}: ${error.message ?? error}`);
      }
    }
    throw new Error(failures.join("; "));
  }

  constructor(session, provider, threads, failures) {
    this.session = session;
    this.provider = provider;
    this.threads = threads;
    this.failures = failures;
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
