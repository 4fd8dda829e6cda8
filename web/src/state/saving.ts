/** Objects and the annotations that the server keeps of them, in both directions. Pure. */

import type { Annotation, AnnotationBody } from "./backend";
import type { Entry } from "./outbox";
import { promptFromJson, promptJson } from "./prompt";
import { areaOf, boxOf, readRuns } from "./runs";
import { difference } from "./scene";
import type { Category, SceneObject } from "./types";

/** categories: those that there are; undo may bring back an object of one that has been deleted. */
export function bodyOf(object: SceneObject, categories: readonly Category[]): AnnotationBody {
  return {
    segmentation: object.rle,
    category_id: categories.some((category) => category.id === object.categoryId) ? object.categoryId : null,
    prompt: promptJson(object.prompt),
    predicted_iou: object.iou,
    label: object.label,
    source: object.source,
  };
}

export function objectOf(annotation: Annotation): SceneObject {
  return {
    id: annotation.id,
    categoryId: annotation.category_id,
    rle: annotation.segmentation,
    area: annotation.area,
    box: annotation.box,
    iou: annotation.predicted_iou,
    label: annotation.label,
    source: annotation.source,
    prompt: promptFromJson(annotation.prompt),
    choices: [],
    choice: 0,
  };
}

/** What the server says of an image, with what it has not acknowledged laid over it. */
export function withPending(annotations: readonly Annotation[], pending: readonly Entry[]): SceneObject[] {
  const objects = new Map(annotations.map((annotation) => [annotation.id, objectOf(annotation)]));
  for (const { id, body } of pending) {
    if (!body) {
      objects.delete(id);
      continue;
    }
    const runs = readRuns(body.segmentation.counts);
    const measured = { area: areaOf(runs), box: boxOf(runs, body.segmentation.size) };
    objects.set(id, objectOf({ ...body, id, ...measured }));
  }
  return [...objects.values()];
}

/** The entries that carry a change of objects to the server. What is not saved (choices) makes none. */
export function entriesFor(
  project: string,
  image: string,
  before: readonly SceneObject[],
  after: readonly SceneObject[],
  categories: readonly Category[],
): Omit<Entry, "stamp">[] {
  const { put, remove } = difference(before, after);
  return [
    ...put.map((object) => ({ project, image, id: object.id, body: bodyOf(object, categories) })),
    ...remove.map((id) => ({ project, image, id, body: null })),
  ];
}
