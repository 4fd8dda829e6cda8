/** Low-resolution logits -> a mask at another size, as anysam.preprocess.upscale_logits and a threshold at 0. */

import type { Box, FrameForm, Size } from "../forms";
import { bicubicRuns } from "./bicubic";
import { type Runs, RunWriter } from "./run_writer";

/** Where output places lie between two input values: `low` and the next one, which has `share`. Rising. */
interface Axis {
  readonly low: Int32Array;
  readonly share: Float32Array;
  readonly inputs: number;
}

/**
 * A column of the input frame, made from `first` to `end`: neither it nor a column beside it is above 0 elsewhere, nor at
 * these two ends unless they are the frame's.
 */
interface Column {
  x: number;
  readonly values: Float32Array;
  first: number;
  end: number;
}

/**
 * logits: (h, w) of the padded input, row by row. inputSize: of the part without padding. outputSize: the original
 * image's, or a smaller one for a preview.
 */
export function upscaleToRuns(
  logits: Float32Array,
  lowResSize: Size,
  frame: FrameForm,
  inputSize: Size,
  outputSize: Size,
): Runs {
  if (logits.length !== lowResSize[0] * lowResSize[1]) {
    throw new RangeError(`Logits of ${lowResSize.join(" x ")} expected, got ${logits.length} values.`);
  }
  if (frame.mask_resize === "bicubic") return bicubicRuns(logits, lowResSize, outputSize);
  return bilinearRuns(logits, lowResSize, frame.low_res_stride, inputSize, outputSize);
}

/**
 * Bilinear twice, column by column as run lengths go. Between two values above 0 all are, between two others none is:
 * a pixel is only looked at where the sign changes, so a large image costs little more than its outline.
 */
function bilinearRuns(logits: Float32Array, lowRes: Size, stride: number, input: Size, output: Size): Runs {
  const [height, width] = output;
  // One cell beyond the image is all that the interpolation looks at; what follows is padding.
  const rows = Math.min(lowRes[0], Math.ceil(input[0] / stride) + 1);
  const columns = Math.min(lowRes[1], Math.ceil(input[1] / stride) + 1);
  const cells = transpose(logits, lowRes[1], rows, columns);
  const makeColumn = columnMaker(
    cells,
    rows,
    bilinearAxis(columns, columns * stride, input[1]),
    bilinearAxis(rows, rows * stride, input[0]),
  );
  const [outX, outY] = [bilinearAxis(input[1], width, width), bilinearAxis(input[0], height, height)];
  const starts = intervalStarts(outY);
  const spare = (): Column => ({ x: -1, values: new Float32Array(input[0]), first: 0, end: 0 });
  // Two columns of the input frame are kept: the next output columns mostly lie between the same ones.
  let [left, right] = [spare(), spare()];
  const between = new Float32Array(input[0]);
  const runs = new RunWriter(output);
  for (let x = 0; x < width; x += 1) {
    const low = outX.low[x]!;
    if (left.x !== low) [left, right] = [right, left];
    if (left.x !== low) makeColumn(left, low);
    const next = Math.min(low + 1, input[1] - 1);
    if (right.x !== next) makeColumn(right, next);
    const first = Math.max(left.first, right.first);
    const end = Math.min(left.end, right.end);
    const share = outX.share[x]!;
    for (let y = first; y < end; y += 1) between[y] = (1 - share) * left.values[y]! + share * right.values[y]!;
    writeColumn(runs, x, between, first, end, outY, starts);
  }
  return runs.finish();
}

/** One output column from the values of the input frame, `first` to `end`; beyond them none is above 0. */
function writeColumn(
  runs: RunWriter,
  x: number,
  values: Float32Array,
  first: number,
  end: number,
  outY: Axis,
  starts: Int32Array,
): void {
  runs.startColumn(x);
  for (let i = first; i < end; i += 1) {
    const [from, to] = [starts[i]!, starts[i + 1]!];
    if (from === to) continue;
    const upper = values[i]!;
    const lower = i + 1 < end ? values[i + 1]! : upper;
    if (upper > 0 && lower > 0) runs.set(from, 1);
    else if (upper <= 0 && lower <= 0) runs.set(from, 0);
    else {
      for (let y = from; y < to; y += 1) {
        const share = outY.share[y]!;
        runs.set(y, (1 - share) * upper + share * lower > 0 ? 1 : 0);
      }
    }
  }
  if (first < end) runs.set(starts[end]!, 0);
}

/** cells: column by column, `rows` in each. cellsX, cellsY: the input frame over the cells. */
function columnMaker(cells: Float32Array, rows: number, cellsX: Axis, cellsY: Axis): (into: Column, x: number) => void {
  const [firsts, lasts] = positiveSpans(cells, rows, cellsX.inputs);
  const line = new Float32Array(rows);
  const starts = intervalStarts(cellsY);
  return (into, x) => {
    const left = cellsX.low[x]!;
    const right = Math.min(left + 1, cellsX.inputs - 1);
    [into.x, into.first, into.end] = [x, 0, 0];
    // The columns beside this one lie at most between the next cells.
    let [first, last] = [rows, -1];
    for (let i = Math.max(0, left - 1); i <= Math.min(cellsX.inputs - 1, right + 1); i += 1) {
      first = Math.min(first, firsts[i]!);
      last = Math.max(last, lasts[i]!);
    }
    if (last < 0) return;
    const { low, share: shares } = cellsY;
    const share = cellsX.share[x]!;
    const [from, to] = [left * rows, right * rows];
    for (let i = Math.max(0, first - 2); i < Math.min(rows, last + 3); i += 1) {
      line[i] = (1 - share) * cells[from + i]! + share * cells[to + i]!;
    }
    // What depends on one of these cells lies behind the cell before the first, or behind the last; and one value more
    // on either side, which the output interpolates to.
    into.first = first > 0 ? Math.max(0, starts[first - 1]! - 1) : 0;
    into.end = Math.min(starts[last + 1]! + 1, low.length);
    for (let y = into.first; y < into.end; y += 1) {
      const along = shares[y]!;
      const at = low[y]!;
      into.values[y] = (1 - along) * line[at]! + along * line[Math.min(at + 1, rows - 1)]!;
    }
  };
}

/** For each column of cells the first and the last that is above 0; `rows` and -1 where there is none. */
function positiveSpans(cells: Float32Array, rows: number, columns: number): [firsts: Int32Array, lasts: Int32Array] {
  const [firsts, lasts] = [new Int32Array(columns).fill(rows), new Int32Array(columns).fill(-1)];
  for (let x = 0; x < columns; x += 1) {
    for (let y = 0, at = x * rows; y < rows; y += 1, at += 1) {
      if (cells[at]! > 0) {
        if (lasts[x]! < 0) firsts[x] = y;
        lasts[x] = y;
      }
    }
  }
  return [firsts, lasts];
}

function transpose(values: Float32Array, stride: number, rows: number, columns: number): Float32Array {
  const turned = new Float32Array(rows * columns);
  for (let y = 0; y < rows; y += 1) {
    for (let x = 0; x < columns; x += 1) turned[x * rows + y] = values[y * stride + x]!;
  }
  return turned;
}

/** `count` of `to` output places over `from` input values, align_corners=False, as PyTorch rounds them. */
function bilinearAxis(from: number, to: number, count: number): Axis {
  const [low, share] = [new Int32Array(count), new Float32Array(count)];
  const scale = Math.fround(from / to);
  for (let i = 0; i < count; i += 1) {
    const place = Math.max(0, Math.fround(Math.fround(scale * Math.fround(i + 0.5)) - 0.5));
    low[i] = Math.min(Math.floor(place), from - 1);
    share[i] = place - low[i]!;
  }
  return { low, share, inputs: from };
}

/** For each input value the first output place that lies at or behind it; at the end the number of places. */
function intervalStarts(axis: Axis): Int32Array {
  const starts = new Int32Array(axis.inputs + 1);
  let place = 0;
  for (let i = 0; i <= axis.inputs; i += 1) {
    while (place < axis.low.length && axis.low[place]! < i) place += 1;
    starts[i] = place;
  }
  return starts;
}

/** A mask's runs in pixels of the image, where they were made for a smaller output. */
export function boxAndAreaOfImage(runs: Runs, [height, width]: Size): { area: number; box: Box } {
  const [y, x] = [height / runs.size[0], width / runs.size[1]];
  const [x0, y0, x1, y1] = runs.box;
  return {
    area: Math.round(runs.area * x * y),
    box: [Math.floor(x0 * x), Math.floor(y0 * y), Math.ceil(x1 * x), Math.ceil(y1 * y)],
  };
}
