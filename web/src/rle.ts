/** COCO's compressed run lengths (column by column) <-> masks (row by row, one byte a pixel). */

import type { Rle, Size } from "./forms";

/** Raises RangeError for run lengths that are damaged or do not fill the size. Pixels of the mask are 1. */
export function decodeRle(rle: Rle): Uint8Array {
  const [height, width] = rle.size;
  const mask = new Uint8Array(height * width);
  let at = 0; // column by column
  countsToRuns(rle.counts).forEach((length, i) => {
    if (length < 0 || at + length > mask.length) throw damaged(`they do not fit ${height} x ${width} pixels`);
    if (i % 2 === 1) fillRun(mask, height, width, at, at + length);
    at += length;
  });
  if (at !== mask.length) throw damaged(`they do not fill ${height} x ${width} pixels`);
  return mask;
}

function fillRun(mask: Uint8Array, height: number, width: number, from: number, to: number): void {
  let x = Math.floor(from / height);
  let y = from - x * height;
  for (let rest = to - from; rest > 0; x += 1, y = 0) {
    const count = Math.min(rest, height - y);
    const start = y * width + x;
    for (let place = start; place < start + count * width; place += width) mask[place] = 1;
    rest -= count;
  }
}

/** mask: height * width values, row by row; everything but 0 is mask. */
export function encodeRle(mask: Uint8Array, size: Size): Rle {
  const [height, width] = size;
  if (mask.length !== height * width) {
    throw new RangeError(`A mask of ${height} x ${width} pixels has ${height * width} values, got ${mask.length}.`);
  }
  const runs: number[] = [];
  let value = 0;
  let length = 0;
  for (let x = 0; x < width; x += 1) {
    for (let place = x; place < mask.length; place += width) {
      if ((mask[place] ? 1 : 0) !== value) {
        runs.push(length);
        value = 1 - value;
        length = 0;
      }
      length += 1;
    }
  }
  if (length || !runs.length) runs.push(length);
  return { size: [height, width], counts: runsToCounts(runs) };
}

/** Five bits a character, low bits first; from the fourth run on the difference to the run two before. */
export function runsToCounts(runs: readonly number[]): string {
  const codes: string[] = [];
  runs.forEach((run, i) => {
    let rest = i > 2 ? run - runs[i - 2]! : run;
    for (;;) {
      // Not by shifting: that is 32 bits wide, and images may have more pixels.
      const five = ((rest % 32) + 32) % 32;
      rest = Math.floor(rest / 32);
      const last = five & 0x10 ? rest === -1 : rest === 0;
      codes.push(String.fromCharCode(48 + five + (last ? 0 : 32)));
      if (last) break;
    }
  });
  return codes.join("");
}

/** Raises RangeError for counts that break off or have foreign characters. */
export function countsToRuns(counts: string): number[] {
  const runs: number[] = [];
  let value = 0;
  let unit = 1;
  for (let i = 0; i < counts.length; i += 1) {
    const code = counts.charCodeAt(i) - 48;
    if (code < 0 || code > 63) throw damaged("the counts have foreign characters");
    value += (code & 0x1f) * unit;
    unit *= 32;
    if (unit > 2 ** 55) throw damaged("a run length has more than 50 bits");
    if (code & 0x20) continue;
    if (code & 0x10) value -= unit;
    runs.push(runs.length > 2 ? value + runs[runs.length - 2]! : value);
    [value, unit] = [0, 1];
  }
  if (unit !== 1) throw damaged("the counts break off");
  return runs;
}

function damaged(why: string): RangeError {
  return new RangeError(`The run lengths of a mask are damaged: ${why}.`);
}
