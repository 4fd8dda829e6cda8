import { expect, test } from "vitest";
import { cocoDocument } from "../src/state/coco";
import type { SceneObject } from "../src/state/types";

const object = (id: string, categoryId: number | null): SceneObject => ({
  id,
  categoryId,
  rle: { size: [4, 6], counts: "R3" },
  area: 6,
  box: [1, 2, 4, 4],
  iou: 0.75,
  label: null,
  source: "click",
  prompt: null,
  choices: [],
  choice: 0,
});

test("COCO has boxes as x y w h, categories from 1, and one for objects without", () => {
  const document = cocoDocument(
    [
      { name: "a.png", size: [4, 6], objects: [object("x", 7), object("y", null)] },
      { name: "b.png", size: [4, 6], objects: [object("z", 99)] },
    ],
    [{ id: 7, name: "cat", colour: "#ff0000" }],
  );
  expect(document).toMatchObject({
    images: [
      { id: 1, file_name: "a.png", height: 4, width: 6 },
      { id: 2, file_name: "b.png" },
    ],
    categories: [
      { id: 1, name: "cat" },
      { id: 2, name: "object" },
    ],
    annotations: [
      { id: 1, image_id: 1, category_id: 1, bbox: [1, 2, 3, 2], area: 6, iscrowd: 0, score: 0.75 },
      { id: 2, image_id: 1, category_id: 2 },
      { id: 3, image_id: 2, category_id: 2 },
    ],
  });
});

test("COCO without a nameless object has no category for one", () => {
  const { categories } = cocoDocument([{ name: "a.png", size: [4, 6], objects: [object("x", 7)] }], [
    { id: 7, name: "cat", colour: "#ff0000" },
  ]);
  expect(categories).toEqual([{ id: 1, name: "cat" }]);
});
