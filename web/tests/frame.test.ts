import { describe, expect, test } from "vitest";
import {
  chosenMasks,
  type Hints,
  inputSize,
  lowResSize,
  pointsForStrokes,
  promptTokens,
  resolveHints,
  strokeToPoints,
} from "../src/decoder/frame";
import { maskToLogits } from "../src/decoder/mask_prompt";
import type { DecoderInfo } from "../src/forms";
import { decodeRle } from "../src/rle";
import { type FrameCase, type MaskPromptCase, vectors } from "./vectors";

describe.each(vectors<FrameCase[]>("frame"))("$name", (known) => {
  test("sizes are Python's", () => {
    expect(inputSize(known.frame, known.original_size)).toEqual(known.input_size);
    expect(lowResSize(known.frame, known.input_size)).toEqual(known.low_res_size);
  });

  test("a prompt becomes Python's tokens", () => {
    const tokens = promptTokens(resolveHints(known.prompt, known.max_points), known.frame, known.original_size);
    expect([...tokens.labels].map(Number)).toEqual(known.labels);
    known.points.flat().forEach((value, i) => {
      // The last bit may differ for a stroke's points: its length is summed in another order.
      const slack = known.prompt.scribble ? 2e-7 * Math.max(1, value) : 0;
      expect(Math.abs(tokens.points[i]! - value)).toBeLessThanOrEqual(slack);
    });
    expect(tokens.points).toHaveLength(2 * known.points.length);
  });
});

test.each(vectors<MaskPromptCase[]>("mask_prompt"))("a mask becomes Python's mask prompt: $name", (known) => {
  const logits = maskToLogits(decodeRle(known), known.size, known.frame);
  const expected = known.logits.flat();
  expect(logits).toHaveLength(expected.length);
  const differences = expected.map((value, i) => Math.abs(logits[i]! - value));
  // Releases of Pillow differ in which direction they resize first, so pixels may be one of 255 grey levels off; a cell
  // has 16 pixels.
  expect(Math.max(...differences)).toBeLessThan(4 * ((2 * 10) / 255 / 16));
});

test("a stroke that does not move is one point", () => {
  expect(strokeToPoints([[3, 4], [3, 4]])).toEqual([[3, 4]]);
  expect(strokeToPoints([[3, 4]])).toEqual([[3, 4]]);
});

test("strokes share the points that a model takes", () => {
  expect(pointsForStrokes(2, 1, true, 10)).toBe(3);
  expect(pointsForStrokes(2, 9, true, 10)).toBe(1);
  expect(pointsForStrokes(1, 0, false, null)).toBe(8);
});

test("a lone click is answered with several masks, anything else with one", () => {
  const info = { single: [0], several: [1, 2, 3], multimask_default: "single_point" } as unknown as DecoderInfo;
  const click: Hints = { points: [[1, 2]], labels: [1], box: null };
  expect(chosenMasks(info, click, false, null)).toEqual([1, 2, 3]);
  expect(chosenMasks(info, click, true, null)).toEqual([0]);
  expect(chosenMasks(info, { ...click, box: [0, 0, 2, 2] }, false, null)).toEqual([0]);
  expect(chosenMasks(info, { points: [[1, 2], [3, 4]], labels: [1, 0], box: null }, false, null)).toEqual([0]);
  expect(chosenMasks(info, click, false, false)).toEqual([0]);
  expect(chosenMasks({ ...info, multimask_default: "never" }, click, false, null)).toEqual([0]);
  expect(chosenMasks({ ...info, multimask_default: "never" }, click, false, true)).toEqual([1, 2, 3]);
});
