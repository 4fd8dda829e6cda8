import { describe, expect, test } from "vitest";
import { MOST_RADIUS, paintStroke, stepRadius } from "../src/state/brush";
import { areaOf, boxOf, describeMask, hits, maskOfRuns, readRuns, runsOfMask, writeRuns } from "../src/state/runs";
import { shade, stepFor, tileOfRuns } from "../src/state/tiles";
import type { Box, Point, Size } from "../src/state/types";

/** Blobs that touch all borders, by a small generator of its own. */
function noise([height, width]: Size, seed = 1): Uint8Array {
  let value = seed;
  return Uint8Array.from({ length: height * width }, () => {
    value = (value * 48271) % 2147483647;
    return value % 3 === 0 ? 1 : 0;
  });
}

describe("runs", () => {
  const size: Size = [7, 11];

  test("give the mask back, for any mask and any box around it", () => {
    for (let seed = 1; seed < 30; seed += 1) {
      const mask = noise(size, seed);
      expect(maskOfRuns(runsOfMask(mask, size), size)).toEqual(mask);
      expect(readRuns(writeRuns(runsOfMask(mask, size)))).toEqual(runsOfMask(mask, size));
    }
  });

  test("are the same however wide the image and wherever the mask lies in memory", () => {
    for (const wide of [8, 12, 13]) {
      for (let seed = 1; seed < 20; seed += 1) {
        const mask = noise([9, wide], seed);
        const shifted = new Uint8Array(mask.length + 1).subarray(1);
        shifted.set(mask);
        expect(maskOfRuns(runsOfMask(mask, [9, wide]), [9, wide])).toEqual(mask);
        expect(runsOfMask(shifted, [9, wide])).toEqual(runsOfMask(mask, [9, wide]));
      }
    }
  });

  test("of a mask and of the mask within its box are the same", () => {
    const mask = new Uint8Array(77);
    for (const [x, y] of [[3, 2], [4, 2], [4, 3], [8, 4]] as const) mask[y * 11 + x] = 1;
    expect(runsOfMask(mask, size, [3, 2, 9, 5])).toEqual(runsOfMask(mask, size));
    expect(describeMask(mask, size, [3, 2, 9, 5])).toMatchObject({ area: 4, box: [3, 2, 9, 5] });
  });

  test("know area, box and single pixels", () => {
    const mask = noise(size, 5);
    const runs = runsOfMask(mask, size);
    expect(areaOf(runs)).toBe(mask.reduce((sum, pixel) => sum + pixel, 0));
    for (let y = 0; y < 7; y += 1) {
      for (let x = 0; x < 11; x += 1) expect(hits(runs, size, x + 0.5, y + 0.5)).toBe(mask[y * 11 + x] === 1);
    }
    expect(hits(runs, size, -0.1, 3)).toBe(false);
    expect(hits(runs, size, 11, 3)).toBe(false);
  });

  test("of an empty and of a full mask", () => {
    expect(boxOf(runsOfMask(new Uint8Array(77), size), size)).toEqual([0, 0, 0, 0]);
    expect(runsOfMask(new Uint8Array(77).fill(1), size)).toEqual([0, 77]);
    expect(boxOf([0, 77], size)).toEqual([0, 0, 11, 7]);
  });
});

describe("brush", () => {
  const size: Size = [40, 60];

  test("a dab covers a disc of its radius", () => {
    const mask = new Uint8Array(2400);
    paintStroke(mask, size, [[30, 20]], 10, 1);
    const area = mask.reduce((sum, pixel) => sum + pixel, 0);
    expect(Math.abs(area - Math.PI * 100)).toBeLessThan(12);
    expect(mask[20 * 60 + 38]).toBe(1);
    expect(mask[20 * 60 + 41]).toBe(0);
  });

  test("a stroke covers exactly what lies within its radius of the line", () => {
    const mask = new Uint8Array(2400);
    const [a, b]: Point[] = [
      [8, 9],
      [49, 28],
    ] as Point[] as [Point, Point];
    const touched = paintStroke(mask, size, [a as Point, b as Point], 4, 1) as Box;
    const [dx, dy] = [41, 19];
    for (let y = 0; y < 40; y += 1) {
      for (let x = 0; x < 60; x += 1) {
        const t = Math.min(Math.max(((x + 0.5 - 8) * dx + (y + 0.5 - 9) * dy) / (dx * dx + dy * dy), 0), 1);
        const distance = Math.hypot(x + 0.5 - 8 - t * dx, y + 0.5 - 9 - t * dy);
        expect(mask[y * 60 + x]).toBe(distance <= 4 ? 1 : 0);
        if (mask[y * 60 + x]) {
          expect(x >= touched[0] && x < touched[2] && y >= touched[1] && y < touched[3]).toBe(true);
        }
      }
    }
  });

  test("the eraser takes away what the brush made, and stays inside the image", () => {
    const mask = new Uint8Array(2400);
    paintStroke(mask, size, [[-5, -5], [70, 50]], 6, 1);
    paintStroke(mask, size, [[-5, -5], [70, 50]], 6, 0);
    expect(mask.some((pixel) => pixel === 1)).toBe(false);
    expect(paintStroke(mask, size, [[-30, -30]], 6, 1)).toBeNull();
  });

  test("sizes step up and down within their bounds", () => {
    expect(stepRadius(1, 1)).toBe(2);
    expect(stepRadius(1, -1)).toBe(1);
    expect(stepRadius(100, 1)).toBe(125);
    expect(stepRadius(MOST_RADIUS, 1)).toBe(MOST_RADIUS);
  });
});

describe("tiles", () => {
  const size: Size = [31, 23];

  test("have every step-th pixel of their box, and none beyond the image", () => {
    const mask = noise(size, 3);
    const runs = runsOfMask(mask, size);
    for (const step of [1, 2, 3, 5]) {
      for (const box of [[0, 0, 23, 31], [4, 7, 19, 22]] as const) {
        const tile = tileOfRuns(runs, size, box, step);
        expect(tile.width * step).toBeGreaterThanOrEqual(box[2] - box[0]);
        for (let y = 0; y < tile.height; y += 1) {
          for (let x = 0; x < tile.width; x += 1) {
            const [column, row] = [box[0] + x * step, box[1] + y * step];
            expect(tile.inside[y * tile.width + x]).toBe(mask[row * 23 + column]);
          }
        }
      }
    }
  });

  test("have a border inside the mask and a filling of all of it", () => {
    const mask = new Uint8Array(31 * 23);
    for (let y = 5; y < 15; y += 1) mask.fill(1, y * 23 + 6, y * 23 + 18);
    const tile = tileOfRuns(runsOfMask(mask, size), size, [4, 4, 20, 17], 1);
    const { filling, border } = shade(tile, [10, 20, 30], 1);
    const count = (pixels: Uint8ClampedArray): number => pixels.filter((value, i) => i % 4 === 3 && value === 255).length;
    expect(count(filling)).toBe(120);
    expect(count(border)).toBe(2 * 12 + 2 * 8);
  });

  test("of large masks are coarser, so that their memory is bounded", () => {
    expect(stepFor([0, 0, 1000, 1000])).toBe(1);
    const step = stepFor([0, 0, 6000, 4000]);
    expect((6000 / step) * (4000 / step)).toBeLessThanOrEqual(1_500_000);
  });
});
