/** Shows the images: side by side, blended, with a divider, or the fused one alone; one crosshair in all. */

const BLACK = { width: 1, height: 1, channels: 1, data: new Uint8Array(1) };

/** 256 gray levels as they are shown with a level and a window, both in percent of the range. */
function tableOf({ level, width }) {
  const low = (level - width / 2) / 100;
  return Uint8ClampedArray.from({ length: 256 }, (_, n) => (255 * (n / 255 - low)) / (width / 100));
}

function rgba(image, table, alpha = 255) {
  const { width, height, channels, data } = image;
  const result = new ImageData(width, height);
  for (let n = 0; n < width * height; n++) {
    for (let c = 0; c < 3; c++) result.data[4 * n + c] = table[data[channels === 3 ? 3 * n + c : n]];
    result.data[4 * n + 3] = alpha;
  }
  return result;
}

function blended(under, over, share) {
  for (let n = 0; n < under.data.length; n++) under.data[n] += (over.data[n] - under.data[n]) * share;
  return under;
}

const context = (canvas) => canvas.getContext("2d");

/** The mark of a class within a frame, made if need be. */
function line(frame, name) {
  const found = frame.querySelector(`.${name.replaceAll(" ", ".")}`);
  if (found) return found;
  const made = document.createElement("div");
  made.className = name;
  return frame.appendChild(made);
}

export class Viewer {
  /**
   * @param {HTMLElement} stage holds a figure with a canvas for each image and for two images in one
   * @param {{moved: (place: {x: number, y: number}) => void, divided: (percent: number) => void,
   *   windowed: (level: number, width: number) => void, scrolled: (step: number) => void}} tell called on gestures
   */
  constructor(stage, tell) {
    this.stage = stage;
    this.tell = tell;
    this.images = { a: BLACK, b: BLACK, fused: BLACK };
    this.mode = "side";
    this.pair = { under: "a", over: "fused" };
    this.opacity = 50;
    this.divider = 50;
    this.levels = { level: 50, width: 100 };
    this.place = null;
    this.aspect = 1;
    this.letters = ""; // at the left, the right and the upper edge
    for (const frame of stage.querySelectorAll(".frame")) this.listen(frame);
    stage.addEventListener("wheel", (event) => this.scroll(event), { passive: false });
  }

  listen(frame) {
    let before = null;
    const move = (event) => {
      const box = frame.getBoundingClientRect();
      const share = (at, start, size) => Math.min(Math.max((at - start) / size, 0), 1);
      const [x, y] = [share(event.clientX, box.left, box.width), share(event.clientY, box.top, box.height)];
      if (before.button === 2) {
        const { level, width } = before.levels;
        const across = (100 * (event.clientX - before.x)) / box.width;
        const down = (100 * (event.clientY - before.y)) / box.height;
        this.tell.windowed(level + down, width + across);
      } else if (this.mode === "swipe") {
        this.tell.divided(100 * x);
      } else {
        const { width, height } = this.images.fused;
        this.tell.moved({ x: Math.min(Math.floor(x * width), width - 1), y: Math.min(Math.floor(y * height), height - 1) });
      }
    };
    frame.addEventListener("pointerdown", (event) => {
      before = { x: event.clientX, y: event.clientY, button: event.button, levels: { ...this.levels } };
      frame.setPointerCapture(event.pointerId);
      this.stage.focus({ preventScroll: true });
      move(event);
    });
    frame.addEventListener("pointermove", (event) => before && move(event));
    for (const end of ["pointerup", "pointercancel"]) frame.addEventListener(end, () => (before = null));
    frame.addEventListener("contextmenu", (event) => event.preventDefault());
  }

  scroll(event) {
    if (event.ctrlKey) return; // zooms the page
    event.preventDefault();
    this.tell.scrolled(Math.sign(event.deltaY));
  }

  /** Draws everything anew. */
  draw() {
    const table = tableOf(this.levels);
    const two = this.mode === "overlay" || this.mode === "swipe";
    for (const figure of this.stage.querySelectorAll("figure")) {
      const name = figure.dataset.image;
      figure.hidden = name === "two" ? !two : this.mode === "fused" ? name !== "fused" : this.mode !== "side";
      if (figure.hidden) continue;
      if (name === "two") this.drawTwo(figure, table);
      else this.paint(figure, rgba(this.images[name], table));
      this.mark(figure);
    }
  }

  drawTwo(figure, table) {
    const under = rgba(this.images[this.pair.under], table);
    const over = rgba(this.images[this.pair.over], table);
    if (this.mode === "overlay") {
      this.paint(figure, blended(under, over, this.opacity / 100));
    } else {
      this.paint(figure, under);
      const start = Math.round((this.divider / 100) * over.width);
      const drawing = context(figure.querySelector("canvas"));
      if (start < over.width) drawing.putImageData(over, 0, 0, start, 0, over.width - start, over.height);
    }
    const names = { a: "MRI", b: "CT, PET or SPECT", fused: "fused" };
    const [under_, over_] = [names[this.pair.under], names[this.pair.over]];
    figure.querySelector("figcaption").textContent =
      this.mode === "swipe" ? `${under_} (left), ${over_} (right)` : `${over_} (${this.opacity}%) over ${under_}`;
  }

  paint(figure, image) {
    const canvas = figure.querySelector("canvas");
    const { width, height } = image;
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    context(canvas).putImageData(image, 0, 0);
    const frame = figure.querySelector(".frame");
    const shape = width / (height * this.aspect);
    frame.style.aspectRatio = String(shape);
    frame.style.maxWidth = `calc(64vh * ${shape})`;
  }

  mark(figure) {
    const frame = figure.querySelector(".frame");
    const { width, height } = this.images.fused;
    const [across, down] = [line(frame, "cross-x"), line(frame, "cross-y")];
    across.hidden = down.hidden = this.place === null;
    if (this.place) {
      across.style.top = `${(100 * (this.place.y + 0.5)) / height}%`;
      down.style.left = `${(100 * (this.place.x + 0.5)) / width}%`;
    }
    ["left", "right", "top"].forEach((edge, n) => (line(frame, `letter ${edge}`).textContent = this.letters[n] ?? ""));
    const divide = line(frame, "divide");
    divide.hidden = this.mode !== "swipe";
    divide.style.left = `${this.divider}%`;
  }
}
