/** Low-resolution logits -> a mask's runs in one bicubic step, as PyTorch does with align_corners=False. */

import type { Size } from "../forms";
import { type Runs, RunWriter } from "./run_writer";

const SHARPNESS = -0.75; // PyTorch's

/** For each output place the four input values it is made of, and their weights. */
interface Taps {
  readonly index: Int32Array;
  readonly weight: Float32Array;
}

export function bicubicRuns(logits: Float32Array, lowResSize: Size, outputSize: Size): Runs {
  const [rows, columns] = lowResSize;
  const [height, width] = outputSize;
  const [tapsY, tapsX] = [taps(rows, height), taps(columns, width)];
  const line = new Float32Array(rows);
  const runs = new RunWriter(outputSize);
  for (let x = 0; x < width; x += 1) {
    for (let y = 0; y < rows; y += 1) {
      let value = 0;
      for (let k = 4 * x; k < 4 * x + 4; k += 1) value += tapsX.weight[k]! * logits[y * columns + tapsX.index[k]!]!;
      line[y] = value;
    }
    runs.startColumn(x);
    for (let y = 0, k = 0; y < height; y += 1, k += 4) {
      let value = 0;
      for (let i = k; i < k + 4; i += 1) value += tapsY.weight[i]! * line[tapsY.index[i]!]!;
      runs.set(y, value > 0 ? 1 : 0);
    }
  }
  return runs.finish();
}

function taps(from: number, to: number): Taps {
  const [index, weight] = [new Int32Array(4 * to), new Float32Array(4 * to)];
  const scale = Math.fround(from / to);
  for (let i = 0; i < to; i += 1) {
    const place = Math.fround(Math.fround(scale * Math.fround(i + 0.5)) - 0.5);
    const low = Math.floor(place);
    const share = place - low;
    const weights = [outer(share + 1), inner(share), inner(1 - share), outer(2 - share)];
    weights.forEach((value, k) => {
      index[4 * i + k] = Math.min(Math.max(low - 1 + k, 0), from - 1);
      weight[4 * i + k] = value;
    });
  }
  return { index, weight };
}

function inner(x: number): number {
  return ((SHARPNESS + 2) * x - (SHARPNESS + 3)) * x * x + 1;
}

function outer(x: number): number {
  return ((SHARPNESS * x - 5 * SHARPNESS) * x + 8 * SHARPNESS) * x - 4 * SHARPNESS;
}
