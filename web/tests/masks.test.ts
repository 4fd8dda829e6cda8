import { expect, test } from "vitest";
import { maskOutlines } from "../src/masks";
import { type RleCase, unpack, vectors } from "./vectors";

/** Twice the signed area that a closed outline encloses. */
function twiceArea(outline: Int32Array): number {
  let sum = 0;
  for (let i = 0; i < outline.length; i += 2) {
    const [x, y] = [outline[i]!, outline[i + 1]!];
    const [nextX, nextY] = [outline[(i + 2) % outline.length]!, outline[(i + 3) % outline.length]!];
    sum += x * nextY - nextX * y;
  }
  return sum;
}

test.each(vectors<RleCase[]>("rle"))("the outlines enclose exactly the mask: $name", ({ mask, size, area }) => {
  const outlines = maskOutlines(unpack(mask, size), size);
  expect(outlines.reduce((sum, outline) => sum + twiceArea(outline), 0)).toBe(2 * area);
});

test("a ring has an outer and an inner outline, in opposite directions, of corners only", () => {
  const ring = Uint8Array.of(1, 1, 1, 1, 0, 1, 1, 1, 1);
  const outlines = maskOutlines(ring, [3, 3]).map((outline) => [...outline]);
  expect(outlines).toHaveLength(2);
  expect(outlines[0]).toEqual([0, 0, 3, 0, 3, 3, 0, 3]);
  expect(outlines[1]).toHaveLength(8);
  expect(twiceArea(Int32Array.from(outlines[1]!))).toBe(-2);
});

test("pixels that touch at a corner are two outlines", () => {
  expect(maskOutlines(Uint8Array.of(1, 0, 0, 1), [2, 2])).toHaveLength(2);
});
