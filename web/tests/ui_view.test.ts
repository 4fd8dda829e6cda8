import { describe, expect, test } from "vitest";
import type { Point, Size } from "../src/state/types";
import { fitView, MOST_SCALE, panBy, pinch, reveal, toImage, toStage, zoomAt } from "../src/state/view";

const image: Size = [3000, 4000];
const stage: Size = [700, 1000];
const near = (a: Point, b: Point, digits = 6): void => {
  expect(a[0]).toBeCloseTo(b[0], digits);
  expect(a[1]).toBeCloseTo(b[1], digits);
};

describe("fit", () => {
  test("shows all of the image, in the middle, with a margin", () => {
    const view = fitView(image, stage, 20);
    const [x0, y0] = toStage(view, [0, 0]);
    const [x1, y1] = toStage(view, [4000, 3000]);
    expect(y0).toBeCloseTo(20);
    expect(y1).toBeCloseTo(680);
    expect(x0).toBeGreaterThanOrEqual(20);
    expect(x0 + x1).toBeCloseTo(1000);
  });

  test("does not enlarge a tiny image beyond all measure", () => {
    expect(fitView([2, 2], stage).scale).toBe(MOST_SCALE);
  });
});

describe("zoom", () => {
  test("keeps the image point under the pointer", () => {
    const view = fitView(image, stage);
    const at: Point = [420, 333];
    for (const factor of [1.3, 4, 0.9]) near(toImage(zoomAt(view, at, factor, image, stage), at), toImage(view, at));
  });

  test("stops at both ends", () => {
    const view = fitView(image, stage);
    expect(zoomAt(view, [1, 1], 1e9, image, stage).scale).toBe(MOST_SCALE);
    expect(zoomAt(view, [1, 1], 1e-9, image, stage).scale).toBeCloseTo(view.scale / 2);
  });
});

describe("pan", () => {
  test("moves by CSS pixels", () => {
    const view = { scale: 1, tx: -1000, ty: -900 };
    expect(panBy(view, 12, -7, image, stage)).toEqual({ scale: 1, tx: -988, ty: -907 });
  });

  test("never loses the image", () => {
    const view = panBy(fitView(image, stage), 1e6, -1e6, image, stage);
    const [x0] = toStage(view, [0, 0]);
    const [, y1] = toStage(view, [0, 3000]);
    expect(x0).toBeLessThan(1000);
    expect(y1).toBeGreaterThan(0);
  });
});

describe("pinch", () => {
  test("keeps what is under both fingers under them", () => {
    const view = fitView(image, stage);
    const before: [Point, Point] = [
      [300, 300],
      [500, 400],
    ];
    const after: [Point, Point] = [
      [250, 270],
      [650, 470],
    ];
    const next = pinch(view, before, after, image, stage);
    near(toImage(next, after[0]), toImage(view, before[0]));
    near(toImage(next, after[1]), toImage(view, before[1]));
  });
});

describe("reveal", () => {
  test("leaves a view that shows the box alone", () => {
    const view = fitView(image, stage);
    expect(reveal(view, [10, 10, 50, 50], image, stage)).toBe(view);
  });

  test("brings a box from outside into sight", () => {
    const view = { scale: 1, tx: 0, ty: 0 };
    const next = reveal(view, [2000, 1500, 2100, 1600], image, stage);
    const [x, y] = toStage(next, [2100, 1600]);
    expect(x).toBeLessThanOrEqual(1000);
    expect(y).toBeLessThanOrEqual(700);
  });
});
