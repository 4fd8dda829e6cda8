import { expect, test } from "vitest";
import { upscaleToRuns } from "../src/decoder/upscale";
import { decodeRle, runsToCounts } from "../src/rle";
import { halves, type UpscaleCase, vectors } from "./vectors";

const CASES = vectors<UpscaleCase[]>("upscale");

test.each(CASES)("a mask at the image's size is Python's: $name", (known) => {
  const logits = halves(known.low_res_logits);
  const runs = upscaleToRuns(logits, known.low_res_size, known.frame, known.input_size, known.size);
  const mask = decodeRle({ size: known.size, counts: runsToCounts(runs.lengths) });
  const expected = decodeRle(known);
  const different = mask.reduce((count, value, i) => count + (value === expected[i] ? 0 : 1), 0);
  // Only what lies on the threshold to float32's precision may differ, and of that little.
  expect(different).toBeLessThanOrEqual(known.close);
  expect(different).toBeLessThanOrEqual(mask.length / 1000);
  expect(runs.area).toBe(mask.reduce((sum, value) => sum + value, 0));
  if (different === 0) expect(runs).toMatchObject({ area: known.area, box: known.box });
  expect(runs.lengths.slice(1).every((length) => length > 0)).toBe(true);
});

test("most masks are Python's to the pixel", () => {
  const same = CASES.filter((known) => {
    const logits = halves(known.low_res_logits);
    const runs = upscaleToRuns(logits, known.low_res_size, known.frame, known.input_size, known.size);
    return runsToCounts(runs.lengths) === known.counts;
  });
  expect(same.length).toBeGreaterThan(0.8 * CASES.length);
});

test("logits of another size are refused", () => {
  const known = CASES[0]!;
  expect(() => upscaleToRuns(new Float32Array(3), known.low_res_size, known.frame, known.input_size, known.size)).toThrow(
    "got 3 values",
  );
});
