/** COCO run lengths as numbers: areas, boxes, one pixel, columns; a whole mask only where one is asked for. */

import { countsToRuns, runsToCounts } from "../rle";
import type { Box, Rle, Size } from "./types";

/** Lengths of runs column by column, of 0 and 1 in turn, 0 first. */
export type Runs = readonly number[];

export const readRuns: (counts: string) => number[] = countsToRuns;
export const writeRuns: (runs: Runs) => string = runsToCounts;

/**
 * The runs of a mask (H*W values of 0 and 1, row by row); a box outside of which it is empty saves time. The mask is read
 * in the order it lies in memory: where a pixel differs from the one above, a run ends; sorted, these places are the runs.
 */
export function runsOfMask(mask: Uint8Array, [height, width]: Size, box: Box = [0, 0, width, height]): number[] {
  const [left, top] = [Math.max(box[0], 0), Math.max(box[1], 0)];
  const [right, bottom] = [Math.min(box[2], width), Math.min(box[3], height)];
  const places: number[] = [];
  // Four pixels at once where they can be read so: most are like the four above.
  const words = width % 4 === 0 && mask.byteOffset % 4 === 0 ? new Uint32Array(mask.buffer, mask.byteOffset, mask.length >> 2) : null;
  for (let y = top; y < bottom; y += 1) {
    const row = y * width;
    for (let x = left; x < right; x += 1) {
      if (words && y > top && x % 4 === 0) {
        while (x < right && words[(row + x) >> 2] === words[(row + x - width) >> 2]) x += 4;
        if (x >= right) break;
      }
      const above = y > top ? mask[row + x - width] : 0;
      if (mask[row + x] !== above) places.push(x * height + y);
    }
  }
  for (let x = left; x < right; x += 1) {
    if (bottom > top && mask[(bottom - 1) * width + x]) places.push(x * height + bottom);
  }
  return runsBetween(Float64Array.from(places).sort(), height * width);
}

/** Lengths between places where 0 and 1 change; two changes at one place (from column to column) are none. */
function runsBetween(places: Float64Array, length: number): number[] {
  const runs: number[] = [];
  let last = 0;
  for (let i = 0; i < places.length; i += 1) {
    const place = places[i] as number;
    if (place === places[i + 1]) {
      i += 1;
      continue;
    }
    runs.push(place - last);
    last = place;
  }
  if (last < length || runs.length === 0) runs.push(length - last);
  return runs;
}

export function areaOf(runs: Runs): number {
  let area = 0;
  for (let i = 1; i < runs.length; i += 2) area += runs[i] as number;
  return area;
}

/** x0 y0 x1 y1 with right and bottom exclusive; all 0 for an empty mask. */
export function boxOf(runs: Runs, [height]: Size): Box {
  let [x0, y0, x1, y1] = [Infinity, Infinity, 0, 0];
  eachSpan(runs, height, (x, top, bottom) => {
    if (x < x0) x0 = x;
    if (x >= x1) x1 = x + 1;
    if (top < y0) y0 = top;
    if (bottom > y1) y1 = bottom;
  });
  return x1 === 0 ? [0, 0, 0, 0] : [x0, y0, x1, y1];
}

export function hits(runs: Runs, [height, width]: Size, x: number, y: number): boolean {
  const column = Math.floor(x);
  const row = Math.floor(y);
  if (column < 0 || row < 0 || column >= width || row >= height) return false;
  const target = column * height + row;
  let at = 0;
  for (let i = 0; i < runs.length; i += 1) {
    at += runs[i] as number;
    if (target < at) return i % 2 === 1;
  }
  return false;
}

/** Calls with each column's piece of the mask: x, first row, row after the last. */
export function eachSpan(runs: Runs, height: number, call: (x: number, top: number, bottom: number) => void): void {
  let at = 0;
  for (let i = 0; i < runs.length; i += 1) {
    const end = at + (runs[i] as number);
    if (i % 2 === 1) {
      while (at < end) {
        const x = Math.floor(at / height);
        const top = at - x * height;
        const bottom = Math.min(top + end - at, height);
        call(x, top, bottom);
        at += bottom - top;
      }
    }
    at = end;
  }
}

/** A mask (H*W), row by row, of 0 and 1. */
export function maskOfRuns(runs: Runs, [height, width]: Size): Uint8Array {
  const mask = new Uint8Array(height * width);
  eachSpan(runs, height, (x, top, bottom) => {
    for (let y = top, at = top * width + x; y < bottom; y += 1, at += width) mask[at] = 1;
  });
  return mask;
}

/** Remembers the runs of masks for as long as the masks are in use: pointing asks for the same ones again and again. */
export function runsCache(): (rle: Rle) => Runs {
  const known = new WeakMap<Rle, Runs>();
  return (rle) => {
    let runs = known.get(rle);
    if (!runs) {
      runs = readRuns(rle.counts);
      known.set(rle, runs);
    }
    return runs;
  };
}

/** What an object keeps of a mask. */
export function describeMask(mask: Uint8Array, size: Size, within?: Box): { rle: Rle; area: number; box: Box } {
  const runs = runsOfMask(mask, size, within);
  return { rle: { size, counts: writeRuns(runs) }, area: areaOf(runs), box: boxOf(runs, size) };
}
