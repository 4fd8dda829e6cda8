import { expect, test } from "vitest";
import { isSame } from "../src/decoder/choice";

const known = { logits: Float32Array.of(-8, 0.01, 4, 9), ious: Float32Array.of(0.5) };

test("rounding makes no difference", () => {
  expect(isSame({ logits: Float32Array.of(-8.01, 0.02, 4, 9.02), ious: Float32Array.of(0.501) }, known)).toBe(true);
});

test.each([
  ["another logit", { logits: Float32Array.of(-8, 0.01, 4, 9.1), ious: Float32Array.of(0.5) }],
  ["another side of the threshold", { logits: Float32Array.of(-8, -0.01, 4, 9), ious: Float32Array.of(0.5) }],
  ["another predicted IoU", { logits: known.logits, ious: Float32Array.of(0.52) }],
  ["no number", { logits: Float32Array.of(-8, Number.NaN, 4, 9), ious: Float32Array.of(0.5) }],
  ["no number for the IoU", { logits: known.logits, ious: Float32Array.of(Number.NaN) }],
  ["fewer logits", { logits: Float32Array.of(-8, 0.01, 4), ious: Float32Array.of(0.5) }],
])("anything else does: %s", (_, found) => {
  expect(isSame(found, known)).toBe(false);
});
