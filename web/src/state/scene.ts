/** The objects of one image and the steps that made them: pure, every change can be undone. Knows no server. */

import type { SceneObject } from "./types";

/** One object before and after a step; null: it was not there, or is not there any more. */
export interface Change {
  readonly id: string;
  readonly before: SceneObject | null;
  readonly after: SceneObject | null;
  readonly index: number; // its place in the list, for the one that comes back
}

export interface Step {
  readonly label: string;
  readonly changes: readonly Change[];
  readonly selectedBefore: string | null;
  readonly selectedAfter: string | null;
}

export interface Scene {
  readonly objects: readonly SceneObject[];
  readonly selected: string | null;
  readonly past: readonly Step[];
  readonly future: readonly Step[];
}

export const MOST_STEPS = 500;

export const emptyScene: Scene = { objects: [], selected: null, past: [], future: [] };

export function sceneOf(objects: readonly SceneObject[]): Scene {
  return { ...emptyScene, objects };
}

export function findObject(scene: Scene, id: string | null): SceneObject | null {
  return id === null ? null : (scene.objects.find((object) => object.id === id) ?? null);
}

/** Selecting is no step of its own: undo goes from change to change. */
export function select(scene: Scene, id: string | null): Scene {
  return scene.selected === id ? scene : { ...scene, selected: findObject(scene, id)?.id ?? null };
}

/** Put objects (new or changed) and take others away, as one step. */
export function commit(
  scene: Scene,
  label: string,
  put: readonly SceneObject[],
  remove: readonly string[] = [],
  selected: string | null = scene.selected,
): Scene {
  const changes: Change[] = [];
  let fresh = scene.objects.length;
  for (const after of put) {
    const at = scene.objects.findIndex((object) => object.id === after.id);
    if (at >= 0 && scene.objects[at] === after) continue;
    changes.push({ id: after.id, before: scene.objects[at] ?? null, after, index: at >= 0 ? at : fresh++ });
  }
  for (const id of remove) {
    const at = scene.objects.findIndex((object) => object.id === id);
    if (at >= 0) changes.push({ id, before: scene.objects[at] ?? null, after: null, index: at });
  }
  if (changes.length === 0) return select(scene, selected);
  const objects = apply(scene.objects, changes, "after");
  const kept = objects.some((object) => object.id === selected) ? selected : null;
  const step: Step = { label, changes, selectedBefore: scene.selected, selectedAfter: kept };
  return { objects, selected: kept, past: [...scene.past, step].slice(-MOST_STEPS), future: [] };
}

export function undo(scene: Scene): Scene {
  const step = scene.past.at(-1);
  if (!step) return scene;
  const objects = apply(scene.objects, step.changes, "before");
  const selected = objects.some((object) => object.id === step.selectedBefore) ? step.selectedBefore : null;
  return { objects, selected, past: scene.past.slice(0, -1), future: [...scene.future, step] };
}

export function redo(scene: Scene): Scene {
  const step = scene.future.at(-1);
  if (!step) return scene;
  const objects = apply(scene.objects, step.changes, "after");
  return { objects, selected: step.selectedAfter, past: [...scene.past, step], future: scene.future.slice(0, -1) };
}

/** What must be saved so that a server that knows `before` knows `after`. */
export function difference(
  before: readonly SceneObject[],
  after: readonly SceneObject[],
): { put: SceneObject[]; remove: string[] } {
  const old = new Map(before.map((object) => [object.id, object]));
  const now = new Set(after.map((object) => object.id));
  return {
    put: after.filter((object) => old.get(object.id) !== object),
    remove: before.filter((object) => !now.has(object.id)).map((object) => object.id),
  };
}

function apply(
  objects: readonly SceneObject[],
  changes: readonly Change[],
  side: "before" | "after",
): readonly SceneObject[] {
  const changed = new Map(changes.map((change) => [change.id, change]));
  const list: SceneObject[] = [];
  for (const object of objects) {
    const change = changed.get(object.id);
    const value = change ? change[side] : object;
    if (value) list.push(value);
    if (change) changed.delete(object.id);
  }
  // What was not in the list comes back at its place, lowest first so that the places still hold.
  const returning = [...changed.values()].filter((change) => change[side] !== null).sort((a, b) => a.index - b.index);
  for (const change of returning) list.splice(Math.min(change.index, list.length), 0, change[side] as SceneObject);
  return list;
}
