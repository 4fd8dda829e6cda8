/** Masks as one byte a pixel, row by row, 0 or 1: area, box, overlap, outline. Sizes are [height, width]. */

import type { Box, Size } from "./forms";

export function maskArea(mask: Uint8Array): number {
  let area = 0;
  for (let i = 0; i < mask.length; i += 1) area += mask[i]! ? 1 : 0;
  return area;
}

/** x0 y0 x1 y1, right and bottom exclusive; all 0 for an empty mask. */
export function maskBox(mask: Uint8Array, [height, width]: Size): Box {
  let [x0, y0, x1, y1] = [width, height, 0, 0];
  for (let y = 0; y < height; y += 1) {
    const row = mask.subarray(y * width, (y + 1) * width);
    const first = row.findIndex((value) => value !== 0);
    if (first < 0) continue;
    let last = width - 1;
    while (row[last] === 0) last -= 1;
    x0 = Math.min(x0, first);
    x1 = Math.max(x1, last + 1);
    y0 = Math.min(y0, y);
    y1 = y + 1;
  }
  return x1 ? [x0, y0, x1, y1] : [0, 0, 0, 0];
}

/** Intersection over union, 0 to 1; 1 for two empty masks. */
export function maskIou(first: Uint8Array, second: Uint8Array): number {
  if (first.length !== second.length) {
    throw new RangeError(`Masks to compare have the same size, got ${first.length} and ${second.length} pixels.`);
  }
  let [both, either] = [0, 0];
  for (let i = 0; i < first.length; i += 1) {
    const [a, b] = [first[i] !== 0, second[i] !== 0];
    if (a && b) both += 1;
    if (a || b) either += 1;
  }
  return either ? both / either : 1;
}

/**
 * Closed outlines along the pixels' edges, x y in turn, one array for each: what a canvas strokes. The mask is on the
 * right of the way, so holes run the other way round, and filling by either rule gives the mask.
 */
export function maskOutlines(mask: Uint8Array, size: Size, box: Box = maskBox(mask, size)): Int32Array[] {
  const [, width] = size;
  const [left, top, right, bottom] = box;
  if (right <= left || bottom <= top) return [];
  const inside = (x: number, y: number): boolean =>
    x >= left && x < right && y >= top && y < bottom && mask[y * width + x] !== 0;
  // Edges along the top of a pixel, going right, that no outline has taken yet: one bit each.
  const columns = right - left;
  const taken = new Uint8Array(columns * (bottom - top));
  const outlines: Int32Array[] = [];
  for (let y = top; y < bottom; y += 1) {
    for (let x = left; x < right; x += 1) {
      if (!inside(x, y) || inside(x, y - 1) || taken[(y - top) * columns + x - left]) continue;
      outlines.push(followOutline(x, y, inside, (cx, cy) => (taken[(cy - top) * columns + cx - left] = 1)));
    }
  }
  return outlines;
}

const STEPS = [
  [1, 0],
  [0, 1],
  [-1, 0],
  [0, -1],
] as const;

/** From the corner x y to the right, around, back to it; corners only. `take` marks edges along a pixel's top. */
function followOutline(
  startX: number,
  startY: number,
  inside: (x: number, y: number) => boolean,
  take: (x: number, y: number) => void,
): Int32Array {
  const corners: number[] = [];
  let [x, y, direction] = [startX, startY, 0];
  do {
    corners.push(x, y);
    // Straight on while the mask is on the right and not on the left.
    for (;;) {
      if (direction === 0) take(x, y);
      x += STEPS[direction]![0];
      y += STEPS[direction]![1];
      const [ahead, aside] = sides(x, y, direction);
      const right = inside(aside[0], aside[1]);
      const left = inside(ahead[0], ahead[1]);
      if (!right) {
        direction = (direction + 1) % 4; // also where two pixels touch at a corner: they stay apart
        break;
      }
      if (left) {
        direction = (direction + 3) % 4;
        break;
      }
    }
  } while (x !== startX || y !== startY || direction !== 0);
  return Int32Array.from(corners);
}

/** The pixels ahead of a corner: on the left of the way, and on its right. */
function sides(x: number, y: number, direction: number): [[number, number], [number, number]] {
  if (direction === 0) return [[x, y - 1], [x, y]];
  if (direction === 1) return [[x, y], [x - 1, y]];
  if (direction === 2) return [[x - 1, y], [x - 1, y - 1]];
  return [[x - 1, y - 1], [x, y - 1]];
}
