import { describe, expect, test } from "vitest";
import { everythingBody, GRANULARITIES } from "../src/state/granularity";
import { readPlace, writePlace } from "../src/state/place";
import { addPoint, addStroke, boxBetween, emptyPrompt, promptFromJson, promptJson, sourceOf, strokePoints, withBox } from "../src/state/prompt";
import type { Point } from "../src/state/types";

describe("prompts", () => {
  test("gather clicks with their signs", () => {
    const prompt = addPoint(addPoint(emptyPrompt, [1, 2], 1), [3, 4], 0);
    expect(promptJson(prompt)).toEqual({ points: [[1, 2], [3, 4]], labels: [1, 0] });
    expect(promptFromJson(promptJson(prompt))).toEqual(prompt);
    expect(promptJson(emptyPrompt)).toBeNull();
  });

  test("a second stroke of a kind turns the first into points of its sign", () => {
    const first: Point[] = [[0, 0], [100, 0]];
    const second: Point[] = [[0, 50], [10, 50]];
    const prompt = addStroke(addStroke(emptyPrompt, first, 0), second, 0);
    expect(prompt.scribble_negative).toEqual(second);
    expect(prompt.points).toHaveLength(8);
    expect(new Set(prompt.labels)).toEqual(new Set([0]));
  });

  test("points of a stroke lie on it, evenly, never at its ends", () => {
    const points = strokePoints([[0, 0], [40, 0], [40, 40]]);
    expect(points).toEqual([[5, 0], [15, 0], [25, 0], [35, 0], [40, 5], [40, 15], [40, 25], [40, 35]]);
    expect(strokePoints([[3, 4]])).toEqual([[3, 4]]);
  });

  test("boxes are put in order and cut at the image; a line is none", () => {
    expect(boxBetween([50, 40], [-10, 5], [30, 60])).toEqual([0, 5, 50, 30]);
    expect(boxBetween([5, 5], [5.4, 20], [30, 60])).toBeNull();
  });

  test("say how an object came to be", () => {
    expect(sourceOf(addPoint(emptyPrompt, [1, 1], 1))).toBe("click");
    expect(sourceOf(withBox(addPoint(emptyPrompt, [1, 1], 1), [0, 0, 5, 5]))).toBe("box");
    expect(sourceOf(addStroke(emptyPrompt, [[1, 1]], 1))).toBe("scribble");
  });
});

describe("granularity", () => {
  const ALL = ["default", "whole", "part", "subpart", "dense", "fast"];

  test("asks a model that finds objects in one pass only for what it knows", () => {
    for (const step of GRANULARITIES.keys()) {
      const { preset, options } = everythingBody(step, [100, 200], ["default", "dense"]);
      expect(["default", "dense"]).toContain(preset);
      expect(options).not.toHaveProperty("points_per_side");
    }
  });

  test("goes from presets for few to presets for many", () => {
    const presets = GRANULARITIES.map((_, step) => everythingBody(step, [100, 200], ALL).preset);
    expect(presets[0]).toBe("whole");
    expect(presets.at(-1)).toBe("dense");
  });

  test("the coarsest leaves out what is small in this image", () => {
    expect(everythingBody(0, [1000, 2000], ALL).options["min_area"]).toBe(8000);
    expect(everythingBody(2, [1000, 2000], ALL).options).toEqual({});
  });
});

describe("place", () => {
  test("a project and an image survive the address", () => {
    const place = { project: "0".repeat(32), image: "ab".repeat(16) };
    expect(readPlace(writePlace(place))).toEqual(place);
    expect(readPlace("#project=../../etc&image=")).toEqual({ project: null, image: null });
  });
});
