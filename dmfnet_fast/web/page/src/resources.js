/** The page's own files: beside it, or within it where it is one file. */

/** The element that holds a file of a page that is one file. */
const within = (name) => document.getElementById(`file:${name}`);

async function unpacked(element) {
  const text = element.textContent.trim();
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

export const isOneFile = () => within("worker.js") !== null;

/** The content of a file of the page. */
export async function resource(name) {
  const element = within(name);
  if (element) return unpacked(element);
  const answer = await fetch(name).catch(() => null);
  if (!answer?.ok) throw new Error(`${name} is missing beside the page, or its server has ended: copy its whole folder, or start it again`);
  return answer.arrayBuffer();
}

export async function json(name) {
  return JSON.parse(new TextDecoder().decode(await resource(name)));
}

export async function startWorker() {
  if (!isOneFile()) return new Worker("worker.js", { type: "module" });
  const code = new Blob([await resource("worker.js")], { type: "text/javascript" });
  return new Worker(URL.createObjectURL(code));
}

/** Hash of a file's content in hexadecimal; null where the browser does not compute it (plain http). */
export async function sha256(content) {
  if (!globalThis.crypto?.subtle) return null;
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", content));
  return [...digest].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
