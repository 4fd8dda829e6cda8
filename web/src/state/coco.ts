/** COCO made in the page, for servers that keep no projects: run lengths, boxes as x y w h. */

import type { Category, SceneObject, Size } from "./types";

export interface CocoImage {
  readonly name: string;
  readonly size: Size;
  readonly objects: readonly SceneObject[];
}

export function cocoDocument(images: readonly CocoImage[], categories: readonly Category[]): Record<string, unknown> {
  const ids = new Map(categories.map((category, i) => [category.id, i + 1]));
  const unnamed = categories.length + 1;
  const bare = images.some((image) => image.objects.some((object) => !ids.has(object.categoryId ?? -1)));
  let next = 1;
  return {
    info: { description: "Masks made with anysam" },
    images: images.map(({ name, size }, i) => ({ id: i + 1, file_name: name, height: size[0], width: size[1] })),
    categories: [
      ...categories.map((category, i) => ({ id: i + 1, name: category.name })),
      ...(bare ? [{ id: unnamed, name: "object" }] : []),
    ],
    annotations: images.flatMap(({ objects }, i) =>
      objects.map((object) => {
        const [x0, y0, x1, y1] = object.box;
        return {
          id: next++,
          image_id: i + 1,
          category_id: ids.get(object.categoryId ?? -1) ?? unnamed,
          segmentation: object.rle,
          area: object.area,
          bbox: [x0, y0, x1 - x0, y1 - y0],
          iscrowd: 0, // one object each, though it is written as run lengths
          score: object.iou ?? 1,
        };
      }),
    ),
  };
}
