/** Times the page in Chromium: `node web.mjs TOOLS`, with a JSON object on standard input; prints times as JSON. */

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [tools] = process.argv.slice(2);
const { chromium } = createRequire(`${tools}/`)("playwright-core");
const { chromium: program, page: address, opened, pair, rounds } = JSON.parse(readFileSync(0, "utf8"));

/** The network's time for each round, by the page's own worker, after two rounds to warm up. */
async function networkTimes(page, files) {
  return page.evaluate(
    async ({ files, rounds }) => {
      const worker = new Worker("worker.js", { type: "module" });
      const call = (call, payload) =>
        new Promise((resolve, reject) => {
          worker.onmessage = ({ data }) => (data.error ? reject(new Error(data.error)) : resolve(data.result));
          worker.postMessage({ id: 0, call, payload });
        });
      const model = await (await fetch("network.onnx")).arrayBuffer();
      const { threads, provider } = await call("open", { model, provider: "wasm", wasm: null, dcm2niix: "" });
      for (const [n, side] of ["a", "b"].entries()) {
        const bytes = Uint8Array.from(atob(files[n]), (letter) => letter.charCodeAt(0));
        await call("read", { side, files: [{ name: `${side}.png`, bytes }] });
      }
      const network = [];
      const whole = [];
      for (let round = -2; round < rounds; round++) {
        await call("prepare", { rangeA: null, rangeB: null, grid: "a", colormap: "auto", keptChroma: 0.75, invention: false });
        const { milliseconds } = await call("slice", { number: 0 });
        if (round < 0) continue;
        network.push(milliseconds.network);
        whole.push(milliseconds.all);
      }
      return { threads, provider, network, whole };
    },
    { files, rounds },
  );
}

const browser = await chromium.launch({ executablePath: program, args: ["--no-sandbox"] });
try {
  const files = pair.map((path) => readFileSync(path).toString("base64"));
  const times = [];
  for (const url of address) {
    const page = await browser.newPage();
    await page.goto(url);
    await page.waitForFunction(() => /^Runs on/.test(document.querySelector("#status").textContent));
    times.push(await networkTimes(page, files));
    await page.close();
  }
  const first = [];
  for (let round = 0; round < 5; round++) {
    // A context of its own has nothing in its cache.
    const context = await browser.newContext();
    const page = await context.newPage();
    const started = performance.now();
    await page.goto(opened);
    await page.waitForSelector("#view:not([hidden])");
    first.push(performance.now() - started);
    await context.close();
  }
  console.log(JSON.stringify({ browser: browser.version(), times, first }));
} finally {
  await browser.close();
}
