/** Actions on objects: prompts and their answers, choices, brush, categories, selection, undo. */

import { type App, type Candidate, isAbort, type PagePrompt, reasonOf, type Segmenter } from "./app";
import { ApiError } from "../problems";
import { paintStroke } from "./brush";
import { idOfRareColour } from "./palette";
import { makeId } from "./place";
import { addPoint, addStroke, emptyPrompt, isEmpty, sourceOf, withBox } from "./prompt";
import { describeMask, hits, maskOfRuns, readRuns } from "./runs";
import * as scenes from "./scene";
import type { Box, Choice, ObjectPrompt, Point, SceneObject, Size } from "./types";

export interface Editing {
  click(point: Point, label: 0 | 1): void;
  box(box: Box, ontoSelected: boolean): void;
  stroke(points: readonly Point[], label: 0 | 1): void;
  paint(points: readonly Point[], radius: number, value: 0 | 1): void;
  choose(index: number): void;
  done(): void;
  select(id: string | null): void;
  selectAt(point: Point): void;
  remove(id: string): void;
  setCategory(id: string, category: number | null): void;
  toggleHidden(id: string): void;
  undo(): void;
  redo(): void;
  /** Drop what has been asked and not answered, for example when another image opens. */
  drop(): void;
}

export function createEditing(app: App): Editing {
  const { store, session, say } = app;
  let tail: Promise<void> = Promise.resolve(); // prompts are answered in their order, each is a step of its own
  let stop = new AbortController();

  function ask(change: (prompt: ObjectPrompt) => ObjectPrompt, fresh: boolean, label: string): void {
    const { scene, pending, size } = store.get();
    if (!size) return;
    const id = (fresh ? null : (pending?.id ?? scene.selected)) ?? newId(scene);
    const known = scenes.findObject(scene, id);
    const prompt = change(pending?.id === id ? pending.prompt : known ? startingPrompt(known) : emptyPrompt);
    if (isEmpty(prompt)) return;
    const began = performance.now();
    const { signal } = stop;
    store.set({ pending: { id, prompt }, preview: null });
    tail = tail.then(() => answer(id, prompt, label, began, signal));
  }

  async function answer(
    id: string,
    prompt: ObjectPrompt,
    label: string,
    began: number,
    signal: AbortSignal,
  ): Promise<void> {
    if (signal.aborted) return;
    try {
      const candidates = await predict(pagePrompt(prompt), signal);
      if (signal.aborted) return;
      const { scene, size } = store.get();
      if (size) take(scene, id, prompt, candidates, size, label);
      requestAnimationFrame(() => store.set({ lastClickMs: Math.round(performance.now() - began) }));
    } catch (error) {
      if (!isAbort(error) && !signal.aborted) say.notice(`No mask: ${reasonOf(error)}`);
    } finally {
      if (store.get().pending?.prompt === prompt) store.set({ pending: null });
    }
  }

  async function predict(prompt: PagePrompt, signal: AbortSignal): Promise<Candidate[]> {
    const segmenter = session.segmenter;
    if (!segmenter) throw new Error("the image is not ready yet.");
    try {
      return await segmenter.predict(prompt, { signal });
    } catch (error) {
      const forgotten = error instanceof ApiError && error.status === 404;
      if (!forgotten || !session.reopen) throw error;
      const again: Segmenter = await session.reopen();
      return again.predict(prompt, { signal });
    }
  }

  function take(
    scene: scenes.Scene,
    id: string,
    prompt: ObjectPrompt,
    candidates: readonly Candidate[],
    size: Size,
    label: string,
  ): void {
    const choices = candidates.map(({ rle, area, box, iou }): Choice => ({ rle, area, box, iou }));
    const order = choices.map((choice, i) => ({ i, worth: choice.area > 0 ? choice.iou : -1 }));
    const choice = order.sort((a, b) => b.worth - a.worth)[0]?.i ?? -1;
    const best = choices[choice];
    const known = scenes.findObject(scene, id);
    if (!best || (best.area === 0 && !known)) {
      say.status("Nothing found there.");
      return;
    }
    const object: SceneObject = {
      ...(known ?? newObject(id)),
      ...best,
      source: sourceOf(prompt),
      prompt,
      choices,
      choice,
    };
    session.changeScene(scenes.commit(scene, label, [object], [], id));
    say.status(`${percent(best.area, size)} of the image. ${choices.length > 1 ? "1, 2, 3 choose another mask." : ""}`);
  }

  function newObject(id: string): SceneObject {
    return {
      id,
      categoryId: store.get().categoryId,
      rle: { size: [0, 0], counts: "" },
      area: 0,
      box: [0, 0, 0, 0],
      iou: null,
      label: null,
      source: "click",
      prompt: null,
      choices: [],
      choice: 0,
    };
  }

  function paint(points: readonly Point[], radius: number, value: 0 | 1): void {
    const { scene, size } = store.get();
    const known = scenes.findObject(scene, scene.selected);
    if (!size || (!known && value === 0)) {
      if (size) say.status("Select an object to erase from.");
      return;
    }
    const mask = known ? maskOfRuns(app.runsOf(known.rle), size) : new Uint8Array(size[0] * size[1]);
    const touched = paintStroke(mask, size, points, radius, value);
    if (!touched) return;
    const around: Box =
      known && known.area > 0
        ? [
            Math.min(known.box[0], touched[0]),
            Math.min(known.box[1], touched[1]),
            Math.max(known.box[2], touched[2]),
            Math.max(known.box[3], touched[3]),
          ]
        : touched;
    const described = describeMask(mask, size, around);
    const object: SceneObject = {
      ...(known ?? newObject(newId(scene))),
      ...described,
      source: "brush",
      prompt: { ...(known ? startingPrompt(known) : emptyPrompt), mask: described.rle },
      choices: [],
      choice: 0,
    };
    session.changeScene(scenes.commit(scene, value ? "Brush" : "Eraser", [object], [], object.id));
    say.status(`${percent(object.area, size)} of the image.`);
  }

  function change(id: string, label: string, patch: Partial<SceneObject>): void {
    const { scene } = store.get();
    const known = scenes.findObject(scene, id);
    if (known) session.changeScene(scenes.commit(scene, label, [{ ...known, ...patch }]));
  }

  function drop(): void {
    stop.abort();
    stop = new AbortController();
    tail = Promise.resolve();
    store.set({ pending: null });
  }

  return {
    click: (point, label) => ask((prompt) => addPoint(prompt, point, label), false, "Click"),
    box(box, ontoSelected) {
      ask((prompt) => withBox(prompt, box), !ontoSelected, "Box");
    },
    stroke: (points, label) => ask((prompt) => addStroke(prompt, points, label), false, "Scribble"),
    paint,
    choose(index) {
      const { scene } = store.get();
      const known = scenes.findObject(scene, scene.selected);
      const choice = known?.choices[index];
      if (!known || !choice || known.choice === index) return;
      change(known.id, "Other mask", { ...choice, choice: index });
      say.status(`Mask ${index + 1} of ${known.choices.length}.`);
    },
    done() {
      const { scene } = store.get();
      drop();
      if (scene.selected) say.status(`Done. ${scene.objects.length} ${scene.objects.length === 1 ? "object" : "objects"}.`);
      session.changeScene(scenes.select(scene, null));
    },
    select(id) {
      drop();
      session.changeScene(scenes.select(store.get().scene, id));
    },
    selectAt(point) {
      const { scene, size, hidden } = store.get();
      if (!size) return;
      const under = scene.objects.filter(
        (object) => !hidden.has(object.id) && hits(app.runsOf(object.rle), size, point[0], point[1]),
      );
      // The smallest one: what lies on or in something larger could not be reached otherwise.
      const smallest = under.sort((a, b) => a.area - b.area)[0] ?? null;
      drop();
      session.changeScene(scenes.select(scene, smallest?.id ?? null));
    },
    remove(id) {
      const { scene, proposals } = store.get();
      drop();
      // What was kept and is deleted must not be offered again.
      store.set({ proposals: proposals?.filter((proposal) => proposal.id !== id) ?? null });
      session.changeScene(scenes.commit(scene, "Delete", [], [id], scene.selected === id ? null : scene.selected));
      say.status("Object deleted. Undo brings it back.");
    },
    setCategory: (id, category) => change(id, "Category", { categoryId: category }),
    toggleHidden(id) {
      const hidden = new Set(store.get().hidden);
      if (!hidden.delete(id)) hidden.add(id);
      store.set({ hidden });
    },
    undo() {
      const { scene, pending } = store.get();
      drop();
      if (pending) return; // what has been asked and not answered is the last step
      const step = scene.past.at(-1);
      session.changeScene(scenes.undo(scene));
      if (step) say.status(`Undone: ${step.label}.`);
    },
    redo() {
      const { scene } = store.get();
      const step = scene.future.at(-1);
      drop();
      session.changeScene(scenes.redo(scene));
      if (step) say.status(`Done again: ${step.label}.`);
    },
    drop,
  };
}

function newId(scene: scenes.Scene): string {
  return idOfRareColour(makeId, scene.objects.map((object) => object.id));
}

/** What further clicks on an object add to. One that no points made (words, an import) starts from its mask. */
function startingPrompt(object: SceneObject): ObjectPrompt {
  const { prompt } = object;
  return prompt && !prompt.text && !isEmpty(prompt) ? prompt : { ...emptyPrompt, mask: object.rle };
}

function pagePrompt(prompt: ObjectPrompt): PagePrompt {
  const page: PagePrompt = {};
  const plain = (points: readonly Point[]): [number, number][] => points.map(([x, y]) => [x, y]);
  if (prompt.points.length > 0) Object.assign(page, { points: plain(prompt.points), labels: [...prompt.labels] });
  if (prompt.box) page.box = [...prompt.box];
  if (prompt.scribble) page.scribble = plain(prompt.scribble);
  if (prompt.scribble_negative) page.scribble_negative = plain(prompt.scribble_negative);
  if (prompt.mask) page.mask = maskOfRuns(readRuns(prompt.mask.counts), prompt.mask.size);
  return page;
}

function percent(area: number, size: Size): string {
  const part = (100 * area) / (size[0] * size[1]);
  return part >= 1 ? `${part.toFixed(0)}%` : `${part.toFixed(2)}%`;
}
