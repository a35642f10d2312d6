/**
 * Drives the page in Chromium: `node drive.mjs SCENARIO TOOLS`, with a JSON object on standard input.
 *
 * TOOLS is a folder whose node_modules hold playwright-core. The result of the scenario is printed as JSON, together
 * with all addresses that were asked for and everything that the page complained of.
 */

import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

const [scenario, tools] = process.argv.slice(2);
const { chromium } = createRequire(`${tools}/`)("playwright-core");
const given = JSON.parse(readFileSync(0, "utf8"));
const TIMEOUT = 60_000;

const shown = (page) => page.waitForSelector("#view:not([hidden])", { timeout: TIMEOUT });
const text = (page, id) => page.textContent(`#${id}`);
const idle = (page) => page.waitForFunction(() => document.querySelector("#view").getAttribute("aria-busy") === "false");

async function choose(page, side, files) {
  await page.setInputFiles(`#source-${side} .files`, files);
}

async function saved(page, button, path) {
  const [download] = await Promise.all([page.waitForEvent("download"), page.click(button)]);
  await download.saveAs(path);
  return download.suggestedFilename();
}

/** What a canvas shows: the sum of its channels, to tell images apart. */
const painted = (page, figure) =>
  page.$eval(`figure[data-image=${figure}] canvas`, (canvas) => {
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    return data.reduce((sum, value, n) => (n % 4 === 3 ? sum : sum + value), 0); // without opacity
  });

const SCENARIOS = {
  /** Two files by the buttons, all views, by mouse and by keyboard. */
  async pair(page) {
    await page.waitForFunction(() => /^Runs on/.test(document.querySelector("#status").textContent));
    await choose(page, "a", given.a);
    await choose(page, "b", given.b);
    await shown(page);
    const result = { status: await text(page, "status"), warnings: await text(page, "warnings"), views: {} };
    result.name = await saved(page, "#save-png", given.save);
    for (const mode of ["overlay", "swipe", "fused"]) {
      await page.check(`#modes input[value=${mode}]`);
      result.views[mode] = await page.$$eval("figure:not([hidden])", (all) => all.map((one) => one.dataset.image));
    }
    await page.check("#modes input[value=swipe]");
    await page.fill("#divider", "0");
    const left = await painted(page, "two");
    await page.fill("#divider", "100");
    const right = await painted(page, "two");
    await page.focus("#stage");
    for (let n = 0; n < 10; n++) await page.keyboard.press("ArrowLeft");
    result.divider = await page.inputValue("#divider");
    await page.check("#modes input[value=overlay]");
    await page.fill("#opacity", "100");
    const above = await painted(page, "two");
    await page.fill("#opacity", "0");
    const below = await painted(page, "two");
    result.swipe = { left, right };
    result.overlay = { above, below };
    await page.check("#modes input[value=side]");
    await page.click("figure[data-image=a] .frame", { position: { x: 100, y: 120 } });
    result.crosshairs = await page.$$eval("figure:not([hidden]) .cross-x", (all) => all.map((one) => one.style.top));
    await page.keyboard.press("Shift+ArrowRight");
    result.readout = await text(page, "readout");
    const before = await painted(page, "fused");
    await page.fill("#window", "50");
    result.windowed = (await painted(page, "fused")) !== before;
    await page.click("#reset");
    await page.click("summary");
    await page.fill("#chroma", "0");
    await page.dispatchEvent("#chroma", "change");
    await page.check("#invention");
    await idle(page);
    await saved(page, "#save-png", given.saveFree);
    return result;
  },

  /** Each of several files for b, fused and saved. */
  async fused(page) {
    await choose(page, "a", given.a);
    for (const [file, path] of given.files) {
      await choose(page, "b", file);
      const name = file.split("/").at(-1);
      await page.waitForFunction((name) => document.querySelector("#source-b .name").textContent.startsWith(`${name} - `), name);
      await shown(page);
      await saved(page, "#save-png", path);
    }
    return {};
  },

  /** A file for b that takes long to read, and another one that is chosen meanwhile. */
  async overtaken(page) {
    await page.evaluate(() => {
      const read = File.prototype.arrayBuffer;
      File.prototype.arrayBuffer = async function () {
        if (this.name === "slow.png") await new Promise((resolve) => setTimeout(resolve, 1500));
        return read.call(this);
      };
    });
    await choose(page, "a", given.a);
    await choose(page, "b", given.slow);
    await choose(page, "b", given.b);
    await shown(page);
    await page.waitForTimeout(2500);
    return { name: await page.textContent("#source-b .name"), error: await text(page, "error") };
  },

  /** What the address itself asks for. */
  async opened(page) {
    await shown(page);
    const texts = (selector) => page.$$eval(selector, (all) => all.map((one) => one.textContent));
    return {
      names: await texts(".source .name"),
      links: await texts("#links a"),
      figures: await page.$$eval("figure:not([hidden])", (all) => all.map((one) => one.dataset.image)),
      slice: await text(page, "slice-number"),
      brightness: await painted(page, "fused"),
    };
  },

  /** The view of a notebook, in its frame. */
  async comparison(page) {
    const frame = page.frameLocator("iframe");
    const now = () =>
      frame.locator("#stage").evaluate((stage) => {
        const [under, over] = stage.querySelectorAll("img");
        return [under.alt, over.alt, getComputedStyle(over).clipPath];
      });
    const before = await now();
    await frame.locator("#left").selectOption("b");
    await frame.locator("#divider").focus();
    for (let n = 0; n < 10; n++) await page.keyboard.press("ArrowRight");
    return { shown: [before, await now()] };
  },

  /** The example, by keyboard alone. */
  async example(page) {
    await page.waitForFunction(() => /^Runs on/.test(document.querySelector("#status").textContent));
    for (let n = 0; n < 12; n++) {
      await page.keyboard.press("Tab");
      if (await page.$eval("#example", (button) => button === document.activeElement)) break;
    }
    await page.keyboard.press("Enter");
    await shown(page);
    return { status: await text(page, "status"), research: await page.isVisible(".research") };
  },

  /** Two files, fused on the GPU as far as it can be trusted. */
  async gpu(page) {
    await page.waitForFunction(() => /^Runs on/.test(document.querySelector("#status").textContent));
    await page.$eval("#provider", (select) => {
      select.value = "webgpu";
      select.dispatchEvent(new Event("change"));
    });
    await page.waitForFunction(() => !document.querySelector("#warnings").hidden, null, { timeout: 3 * TIMEOUT }); // on a GPU of software
    await choose(page, "a", given.a);
    await choose(page, "b", given.b);
    await shown(page);
    const result = { status: await text(page, "status"), warnings: await text(page, "warnings") };
    await saved(page, "#save-png", given.save);
    return result;
  },

  /** Each list of files for b; what is said of it. */
  async refusals(page) {
    const said = [];
    await choose(page, "a", given.a);
    for (const files of given.b) {
      await page.$eval("#error", (element) => (element.textContent = ""));
      await choose(page, "b", files);
      await page.waitForFunction(() => document.querySelector("#error").textContent !== "", null, { timeout: TIMEOUT });
      said.push(await text(page, "error"));
    }
    return { said };
  },

  /** Two volumes: a slice, all slices canceled and not, saved. */
  async volumes(page) {
    await choose(page, "a", given.a);
    await choose(page, "b", given.b);
    await shown(page);
    const advised = [await page.isVisible("#source-b .modality .hint")];
    if (given.modality) {
      await page.selectOption("#source-b .modality select", given.modality);
      await idle(page);
      advised.push(await page.isVisible("#source-b .modality .hint"));
    }
    const result = { advised, slice: await text(page, "slice-number"), warnings: await text(page, "warnings") };
    const [low, high] = ["low-b", "high-b"];
    result.values = await Promise.all([low, high].map((id) => page.getAttribute(`#${id}`, "placeholder")));
    await page.focus("#stage");
    await page.keyboard.press("ArrowDown");
    await page.waitForFunction((before) => document.querySelector("#slice-number").textContent !== before, result.slice);
    result.next = await text(page, "slice-number");
    await page.click("figure[data-image=fused] .frame");
    result.readout = await text(page, "readout");
    if (given.cancel) {
      // After the first slice, by the page itself: small slices are soon done.
      await page.evaluate(() => {
        const [status, all, cancel] = ["status", "fuse-all", "cancel"].map((id) => document.getElementById(id));
        new MutationObserver((_, observer) => {
          if (!status.textContent.startsWith("Fused 1 of ")) return;
          observer.disconnect();
          cancel.click();
        }).observe(status, { childList: true });
        all.click();
      });
      await page.waitForFunction(() => /^Canceled/.test(document.querySelector("#status").textContent));
      const canSave = await page.isEnabled("#save-nifti");
      const fused = await page.$eval("#progress", ({ value }) => value);
      // What the worker says if it is asked nevertheless.
      await page.$eval("#save-nifti", (button) => {
        button.disabled = false;
        button.click();
        button.disabled = true;
      });
      await page.waitForFunction(() => document.querySelector("#error").textContent !== "");
      result.afterCancel = { canSave, fused, refusal: await text(page, "error") };
    }
    await page.click("#fuse-all");
    await page.waitForFunction(() => !document.querySelector("#save-nifti").disabled, null, { timeout: TIMEOUT });
    result.status = await text(page, "status");
    result.name = await saved(page, "#save-nifti", given.save);
    // On another processor all slices are fused anew, so there is no volume to save until then.
    await page.$eval("#provider", (select) => {
      select.value = "wasm";
      select.dispatchEvent(new Event("change"));
    });
    result.savedAfterChange = await page.isEnabled("#save-nifti");
    await page.waitForFunction(() => /^Runs on .* network/.test(document.querySelector("#status").textContent));
    return result;
  },

  /** Luminances of pairs of PNG files, by the page's worker itself; written as float32 one after the other. */
  async luminances(page) {
    const files = given.pairs.map((pair) => pair.map((path) => readFileSync(path).toString("base64")));
    const { provider, data } = await page.evaluate(
      async ({ files, provider }) => {
        const worker = new Worker("worker.js", { type: "module" });
        const call = (call, payload) =>
          new Promise((resolve, reject) => {
            worker.onmessage = ({ data }) => (data.error ? reject(new Error(data.error)) : resolve(data.result));
            worker.postMessage({ id: 0, call, payload });
          });
        const model = await (await fetch("network.onnx")).arrayBuffer();
        const opened = await call("open", { model, provider, wasm: null, dcm2niix: "" });
        const all = [];
        for (const pair of files) {
          for (const [n, side] of ["a", "b"].entries()) {
            const bytes = Uint8Array.from(atob(pair[n]), (letter) => letter.charCodeAt(0));
            await call("read", { side, files: [{ name: `${side}.png`, bytes }] });
          }
          await call("prepare", { rangeA: null, rangeB: null, grid: "a", colormap: "auto", keptChroma: 0.75, invention: false });
          for (const value of await call("luminances", { number: 0 })) all.push(value);
        }
        return { provider: opened, data: all };
      },
      { files, provider: given.provider },
    );
    writeFileSync(given.save, new Uint8Array(Float32Array.from(data).buffer));
    return provider;
  },
};

const browser = await chromium.launch({
  executablePath: given.chromium,
  args: ["--no-sandbox", "--force-color-profile=srgb", ...(given.arguments ?? [])],
});
try {
  const context = await browser.newContext({ viewport: given.viewport ?? { width: 1280, height: 900 }, acceptDownloads: true });
  const page = await context.newPage();
  page.setDefaultTimeout(TIMEOUT);
  const asked = new Set();
  const complaints = [];
  context.on("request", (request) => asked.add(request.url()));
  // That canvases are read often is of this script.
  page.on("console", (message) => {
    const text = message.text();
    if (["error", "warning"].includes(message.type()) && !text.includes("willReadFrequently")) complaints.push(text);
  });
  page.on("pageerror", (error) => complaints.push(String(error)));
  await page.goto(given.url);
  let result;
  try {
    result = await SCENARIOS[scenario](page);
  } catch (error) {
    console.error(String(error), "\npage:", await page.innerText("body"), complaints);
    process.exitCode = 1;
  }
  if (given.screenshot) await page.screenshot({ path: given.screenshot, fullPage: true });
  console.log(JSON.stringify({ ...result, asked: [...asked].map((url) => url.slice(0, 200)), complaints }));
} finally {
  await browser.close();
}
