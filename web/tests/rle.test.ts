import { expect, test } from "vitest";
import { maskArea, maskBox, maskIou } from "../src/masks";
import { countsToRuns, decodeRle, encodeRle, runsToCounts } from "../src/rle";
import { type RleCase, unpack, vectors } from "./vectors";

const CASES = vectors<RleCase[]>("rle");

test.each(CASES)("a mask becomes the counts of pycocotools: $name", ({ mask, size, counts }) => {
  expect(encodeRle(unpack(mask, size), size)).toEqual({ size, counts });
});

test.each(CASES)("the counts of pycocotools become the mask: $name", ({ mask, size, counts, area, box }) => {
  const decoded = decodeRle({ size, counts });
  expect(Buffer.compare(decoded, unpack(mask, size))).toBe(0); // toEqual takes long for so many
  expect(maskArea(decoded)).toBe(area);
  expect(maskBox(decoded, size)).toEqual(box);
});

test("lengths beyond 32 bits survive", () => {
  const runs = [5, 2 ** 40, 3, 7, 2 ** 41];
  expect(countsToRuns(runsToCounts(runs))).toEqual(runs);
});

test.each([
  ["breaks off", { size: [2, 3], counts: "P" }],
  ["has foreign characters", { size: [2, 3], counts: "6 0" }],
  ["is too short", { size: [2, 3], counts: "5" }],
  ["is too long", { size: [2, 3], counts: "7" }],
  ["has a negative length", { size: [2, 3], counts: "O6" }],
] as const)("damaged counts are refused: %s", (_, rle) => {
  expect(() => decodeRle(rle)).toThrow(RangeError);
});

test("a mask of another size is refused", () => {
  expect(() => encodeRle(new Uint8Array(5), [2, 3])).toThrow("6 values, got 5");
});

test("overlap", () => {
  expect(maskIou(Uint8Array.of(1, 1, 0, 0), Uint8Array.of(0, 1, 1, 0))).toBeCloseTo(1 / 3);
  expect(maskIou(new Uint8Array(4), new Uint8Array(4))).toBe(1);
});
