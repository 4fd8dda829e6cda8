/** A mask at the image's size -> the logits that a mask prompt is: anysam.preprocess.mask_to_logits. */

import type { FrameForm, Size } from "../forms";
import { inputSize, lowResSize } from "./frame";

const MASK_PROMPT_LOGIT = 10;
const PRECISION = 22; // bits after the point of Pillow's weights for 8-bit images

/** mask: height * width values, 0 or not, row by row -> (h, w) logits of the padded input. */
export function maskToLogits(mask: Uint8Array, originalSize: Size, frame: FrameForm): Float32Array {
  const input = inputSize(frame, originalSize);
  const [rows, columns] = lowResSize(frame, input);
  const coverage = resize(mask, originalSize, input);
  const stride = frame.low_res_stride;
  const sums = new Float32Array(rows * columns);
  for (let y = 0; y < input[0]; y += 1) {
    const line = Math.floor(y / stride) * columns;
    for (let x = 0; x < input[1]; x += 1) sums[line + Math.floor(x / stride)]! += coverage[y * input[1] + x]!;
  }
  return sums.map((sum) => ((2 * sum) / (255 * stride * stride) - 1) * MASK_PROMPT_LOGIT);
}

/** As Pillow resizes 0 and 255 with its bilinear filter: first along the rows, rounded to whole numbers each time. */
function resize(mask: Uint8Array, from: Size, to: Size): Uint8Array {
  const [height, width] = from;
  const [x, y] = [weights(width, to[1]), weights(height, to[0])];
  const narrow = new Uint8Array(height * to[1]);
  for (let row = 0; row < height; row += 1) {
    const line = mask.subarray(row * width, (row + 1) * width);
    for (let i = 0; i < to[1]; i += 1) {
      let sum = 0;
      for (let k = 0; k < x.counts[i]!; k += 1) if (line[x.starts[i]! + k]) sum += x.values[i * x.most + k]!;
      narrow[row * to[1] + i] = rounded(255 * sum);
    }
  }
  const small = new Uint8Array(to[0] * to[1]);
  const sums = new Float64Array(to[1]);
  for (let i = 0; i < to[0]; i += 1) {
    sums.fill(0);
    for (let k = 0; k < y.counts[i]!; k += 1) {
      const [weight, row] = [y.values[i * y.most + k]!, (y.starts[i]! + k) * to[1]];
      for (let at = 0; at < to[1]; at += 1) sums[at]! += weight * narrow[row + at]!;
    }
    for (let at = 0; at < to[1]; at += 1) small[i * to[1] + at] = rounded(sums[at]!);
  }
  return small;
}

function rounded(sum: number): number {
  return Math.min(255, Math.max(0, Math.floor((sum + 2 ** (PRECISION - 1)) / 2 ** PRECISION)));
}

/** Whole-number weights of a triangle as wide as an output pixel, at least as an input pixel, on either side. */
function weights(from: number, to: number): { starts: Int32Array; counts: Int32Array; values: Int32Array; most: number } {
  const scale = from / to;
  const support = Math.max(scale, 1);
  const most = Math.ceil(support) * 2 + 1;
  const [starts, counts, values] = [new Int32Array(to), new Int32Array(to), new Int32Array(to * most)];
  for (let i = 0; i < to; i += 1) {
    const centre = (i + 0.5) * scale;
    const start = Math.max(0, Math.trunc(centre - support + 0.5));
    const count = Math.min(from, Math.trunc(centre + support + 0.5)) - start;
    const own = Array.from({ length: count }, (_, k) => Math.max(0, 1 - Math.abs((k + start - centre + 0.5) * (1 / support))));
    const total = own.reduce((sum, value) => sum + value, 0);
    starts[i] = start;
    counts[i] = count;
    own.forEach((value, k) => (values[i * most + k] = Math.floor(value * (1 / total) * 2 ** PRECISION + 0.5)));
  }
  return { starts, counts, values, most };
}
