/**
 * Preprocessing of a drawing, from strokes to the input of the network.
 *
 *     strokes -> rasterize -> 28×28 grey levels -> resize -> 48×48 -> normalize -> (48, 48, 3)
 *
 * A stroke is an array of points [x, y] in [0, 1], with y downwards. An image is a Uint8Array of grey
 * levels, row by row.
 *
 * `rasterize` does to a drawing what the authors of MNIST did to a scanned digit, so that size and
 * place of the drawing do not matter. `resize` and `normalize` are those of keras-zoo, to the bit:
 * `zoo classify` computes the same input from a PNG file of the 28×28 image.
 */

export const MNIST_SIZE = 28;
export const INPUT_SIZE = 48;

const BOX = 20; // MNIST: the digit fits in a box of 20×20 pixels
const CENTER = 14.5; // MNIST: the centre of mass is the middle of pixel 14, counted from 0
const PEN = 2.9; // the median width of the strokes of MNIST's ones, in pixels
const EDGE = 1.6; // the width, in pixels, over which an edge fades
const SMALLEST = 1 / 15; // drawings of a smaller extent, such as a dot, are not enlarged to fill the box

const MEAN = 0.1307; // `normalization` in the card of the weights cnn_48x48-mnist
const STD = 0.3081;

/**
 * Draws strokes as an image of MNIST.
 *
 * The drawing is scaled to fit the box, its strokes have one width whatever the scale, and its
 * centre of mass is moved to the centre of the image.
 *
 * @param {number[][][]} strokes At least one stroke of at least one point.
 * @returns {Uint8Array} Image of 28×28 grey levels, white on black.
 */
export function rasterize(strokes) {
  let [left, top, right, bottom] = [Infinity, Infinity, -Infinity, -Infinity];
  for (const [x, y] of strokes.flat()) {
    [left, right] = [Math.min(left, x), Math.max(right, x)];
    [top, bottom] = [Math.min(top, y), Math.max(bottom, y)];
  }
  const scale = (BOX - PEN) / Math.max(right - left, bottom - top, SMALLEST);
  const place = (dx, dy) =>
    strokes.map((stroke) =>
      stroke.map(([x, y]) => [
        (x - (left + right) / 2) * scale + MNIST_SIZE / 2 + dx,
        (y - (top + bottom) / 2) * scale + MNIST_SIZE / 2 + dy,
      ]),
    );
  const [x, y] = centerOfMass(render(place(0, 0)));
  // The box stays within the image.
  const margin = (MNIST_SIZE - BOX) / 2;
  const shift = (center) => Math.max(-margin, Math.min(margin, CENTER - center));
  return Uint8Array.from(render(place(shift(x), shift(y))), (value) => Math.round(255 * value));
}

/** Coverage of each pixel, in [0, 1], by a round pen that follows the strokes. */
function render(strokes) {
  const coverage = new Float64Array(MNIST_SIZE * MNIST_SIZE);
  const reach = (PEN + EDGE) / 2;
  const clip = (value) => Math.max(0, Math.min(MNIST_SIZE, value));
  for (const stroke of strokes) {
    stroke.forEach(([x1, y1], index) => {
      const [x0, y0] = stroke[Math.max(index - 1, 0)]; // a first point is a dot
      const rows = [Math.floor(clip(Math.min(y0, y1) - reach)), clip(Math.max(y0, y1) + reach)];
      const columns = [Math.floor(clip(Math.min(x0, x1) - reach)), clip(Math.max(x0, x1) + reach)];
      for (let row = rows[0]; row < rows[1]; row++) {
        for (let column = columns[0]; column < columns[1]; column++) {
          const distance = distanceToSegment(column + 0.5, row + 0.5, x0, y0, x1, y1);
          const value = Math.min(1, (reach - distance) / EDGE);
          const pixel = row * MNIST_SIZE + column;
          coverage[pixel] = Math.max(coverage[pixel], value);
        }
      }
    });
  }
  return coverage;
}

function distanceToSegment(x, y, x0, y0, x1, y1) {
  const [dx, dy] = [x1 - x0, y1 - y0];
  const along = ((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy || 1);
  const t = Math.max(0, Math.min(1, along));
  return Math.hypot(x - x0 - t * dx, y - y0 - t * dy);
}

function centerOfMass(coverage) {
  let [mass, x, y] = [0, 0, 0];
  coverage.forEach((value, pixel) => {
    mass += value;
    x += value * ((pixel % MNIST_SIZE) + 0.5);
    y += value * (Math.floor(pixel / MNIST_SIZE) + 0.5);
  });
  return [x / mass, y / mass];
}

/**
 * Enlarges a square image by Pillow's bilinear filter, in Pillow's integer arithmetic.
 *
 * @param {Uint8Array} image Image of size×size grey levels.
 * @param {number} size Height and width of the image.
 * @param {number} newSize Height and width of the result, at least `size`.
 * @returns {Uint8Array} Image of newSize×newSize grey levels.
 */
export function resize(image, size, newSize) {
  const weights = bilinearWeights(size, newSize);
  // Each call resizes the rows and transposes: the second call resizes the columns.
  return resizeRows(resizeRows(image, size, weights), size, weights);
}

const PRECISION = 22; // bits of Pillow's fixed-point weights for 8-bit images

/** The first source pixel of each new pixel, and the weights of it and those that follow. */
function bilinearWeights(size, newSize) {
  return Array.from({ length: newSize }, (_, index) => {
    const center = ((index + 0.5) * size) / newSize;
    const first = Math.max(0, Math.trunc(center - 0.5));
    const end = Math.min(size, Math.trunc(center + 1.5));
    const values = Array.from({ length: end - first }, (_, i) =>
      Math.max(0, 1 - Math.abs(first + i - center + 0.5)),
    );
    const total = values.reduce((sum, value) => sum + value, 0);
    return [first, values.map((value) => Math.trunc(0.5 + (value / total) * 2 ** PRECISION))];
  });
}

/** Resizes each row, of `size` pixels, and transposes the result. */
function resizeRows(image, size, weights) {
  const rows = image.length / size;
  const result = new Uint8Array(weights.length * rows);
  weights.forEach(([first, values], column) => {
    for (let row = 0; row < rows; row++) {
      let sum = 2 ** (PRECISION - 1); // rounds to the nearest grey level
      values.forEach((value, i) => (sum += image[row * size + first + i] * value));
      result[column * rows + row] = Math.min(255, sum >> PRECISION);
    }
  });
  return result;
}

/**
 * Normalizes grey levels as the training did, and repeats them in three channels.
 *
 * @param {Uint8Array} image Grey levels.
 * @returns {Float32Array} (grey / 255 - mean) / std, three times for each pixel.
 */
export function normalize(image) {
  return Float32Array.from(
    { length: 3 * image.length },
    (_, index) => (image[Math.floor(index / 3)] / 255 - MEAN) / STD,
  );
}

/** Probabilities of logits. */
export function softmax(logits) {
  const largest = Math.max(...logits);
  const exponentials = Array.from(logits, (logit) => Math.exp(logit - largest));
  const sum = exponentials.reduce((total, value) => total + value, 0);
  return exponentials.map((value) => value / sum);
}
