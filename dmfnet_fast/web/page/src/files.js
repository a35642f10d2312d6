/** Files that a user drops or chooses, with all files of dropped folders. */

import { UserError } from "./errors.js";

const MOST_FILES = 20_000;
const MOST_BYTES = 2 ** 31;

async function filesIn(entry) {
  if (entry.isFile) return [await new Promise((resolve, reject) => entry.file(resolve, reject))];
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    // A reader gives at most a hundred entries at once.
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (some.length === 0) return found;
    for (const one of some) found.push(...(await filesIn(one)));
    if (found.length > MOST_FILES) return found;
  }
}

/** The files of a drop. */
export async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (entries.length === 0) return [...transfer.files];
  return (await Promise.all(entries.map(filesIn))).flat();
}

/** The content of files, for the worker. */
export async function contents(files) {
  const bytes = files.reduce((sum, file) => sum + file.size, 0);
  if (files.length > MOST_FILES || bytes > MOST_BYTES) {
    throw new UserError(`${files.length} files of ${Math.round(bytes / 1e6)} MB are too much for this page; give one series`);
  }
  const read = async (file) => {
    try {
      return { name: file.name, bytes: new Uint8Array(await file.arrayBuffer()) };
    } catch (error) {
      throw new UserError(`${file.name}: cannot be read (${error.message})`);
    }
  };
  return Promise.all(files.map(read));
}

/** Gives the user a file to save. */
export function save(bytes, name, type) {
  const url = URL.createObjectURL(new Blob([bytes], { type }));
  const link = document.createElement("a");
  Object.assign(link, { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
