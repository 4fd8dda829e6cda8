import { expect, test } from "vitest";
import { readSafetensors } from "../src/safetensors";
import { bytesOf, type SafetensorsCase, vectors } from "./vectors";

const KNOWN = vectors<SafetensorsCase>("safetensors");
const SPECIAL: Record<string, number> = { inf: Number.POSITIVE_INFINITY, "-inf": Number.NEGATIVE_INFINITY };

test("float16 and float32 are read as they were written", () => {
  const { tensors, metadata } = readSafetensors(bytesOf(KNOWN.file));
  expect(metadata).toEqual({ size: "3,4" });
  expect(tensors.get("half")?.shape).toEqual([3, 4]);
  const half = KNOWN.half.map((value) => SPECIAL[value] ?? Number(value));
  expect([...tensors.get("half")!.data]).toEqual(half);
  expect([...tensors.get("odd")!.data]).toEqual(half.slice(0, 3));
  expect([...tensors.get("single")!.data]).toEqual(KNOWN.single);
});

test.each([
  ["cut off", (file: ArrayBuffer) => file.slice(0, -1)],
  ["without its header", (file: ArrayBuffer) => file.slice(0, 20)],
  ["empty", () => new ArrayBuffer(0)],
] as const)("a damaged file is refused: %s", (_, damage) => {
  expect(() => readSafetensors(damage(bytesOf(KNOWN.file)))).toThrow("cannot be read");
});
