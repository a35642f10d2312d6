/** Slices as radiologists look at them: the patient's left on the right; `dmfnet_fast.volumes.planes` in JavaScript. */

// Directions of an image's columns and rows in LPS, by the axis that is nearest to the slices' normal.
const ACROSS = [[0, 1, 0], [1, 0, 0], [1, 0, 0]];
const DOWN = [[0, 0, -1], [0, 0, -1], [0, 1, 0]];
// At the left, the right and the upper edge: right, left, anterior, posterior, superior.
const LETTERS = ["APS", "RLS", "RLA"];

const column = (m, n) => [m[n], m[4 + n], m[8 + n]];
const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
export const unit = (a) => a.map((value) => value / Math.hypot(...a));

/** Whether slices follow each other along the cross product of rows and columns, as those of DICOM do when sorted. */
export const isRightHanded = (m) => dot(cross(column(m, 2), column(m, 1)), column(m, 0)) > 0;

/** Turns slices by multiples of 90 degrees and mirrors them until they are upright. */
export class Upright {
  /** @param {number[]} affine (slice, row, column) to mm in LPS */
  constructor(affine, height, width) {
    let [rows, columns] = [unit(column(affine, 1)), unit(column(affine, 2))];
    const normal = cross(columns, rows).map(Math.abs);
    const plane = normal.indexOf(Math.max(...normal));
    const [across, down] = [ACROSS[plane], DOWN[plane]];
    this.letters = LETTERS[plane];
    const along = (one, other) => Math.abs(dot(rows, one)) + Math.abs(dot(columns, other));
    this.turned = along(down, across) < along(across, down);
    if (this.turned) [rows, columns] = [columns, rows];
    this.height = this.turned ? width : height;
    this.width = this.turned ? height : width;
    this.mirrored = [dot(rows, down) < 0, dot(columns, across) < 0];
    this.affine = this.moved(affine);
  }

  /** The affine of an upright slice's (slice, row, column). */
  moved(affine) {
    const result = [...affine];
    for (let row = 0; row < 12; row += 4) {
      const axes = this.turned ? [affine[row + 2], affine[row + 1]] : [affine[row + 1], affine[row + 2]];
      [this.height, this.width].forEach((size, n) => {
        if (this.mirrored[n]) result[row + 3] += axes[n] * (size - 1);
        result[row + 1 + n] = this.mirrored[n] ? -axes[n] : axes[n];
      });
    }
    return result;
  }

  image(image) {
    const { data, channels } = image;
    const { turned, height, width, mirrored } = this;
    const result = new data.constructor(data.length);
    let at = 0;
    for (let y = 0; y < height; y++) {
      const row = mirrored[0] ? height - 1 - y : y;
      for (let x = 0; x < width; x++) {
        const across = mirrored[1] ? width - 1 - x : x;
        const from = (turned ? across * image.width + row : row * image.width + across) * channels;
        for (let c = 0; c < channels; c++) result[at++] = data[from + c];
      }
    }
    return { ...image, width, height, data: result };
  }
}

/** A volume with its rows or its slices in the opposite order; it stays where it is. */
export function reversed(volume, axis) {
  const { shape, affine, channels, values } = volume;
  const [slices, rows, columns] = shape;
  const line = columns * channels;
  const result = new values.constructor(values.length);
  for (let slice = 0; slice < slices; slice++) {
    for (let row = 0; row < rows; row++) {
      const from = axis === 0 ? slices - 1 - slice : slice;
      const start = (from * rows + (axis === 1 ? rows - 1 - row : row)) * line;
      result.set(values.subarray(start, start + line), (slice * rows + row) * line);
    }
  }
  const moved = [...affine];
  for (let row = 0; row < 12; row += 4) {
    moved[row + 3] += affine[row + axis] * (shape[axis] - 1);
    moved[row + axis] = -affine[row + axis];
  }
  return { ...volume, values: result, affine: moved };
}
