/** Under the image, for the selected object: its masks to choose from, and the end of its editing. */

import type { App } from "../state/app";
import type { Editing } from "../state/editing";
import { findObject } from "../state/scene";
import { sameMembers } from "../state/store";
import { stepFor, tileOfRuns } from "../state/tiles";
import type { Choice, SceneObject } from "../state/types";
import { button, h, show } from "./dom";
import { icon } from "./icons";
import { colourFor } from "./marks";
import type { Photo } from "./photo";
import { drawAt, FILLING_ALPHA, pictureOf } from "./tile_cache";

const [WIDTH, HEIGHT] = [72, 54];

export function createChooser(app: App, editing: Editing, photo: () => Photo | null): HTMLElement {
  const { store } = app;
  const choices = h("div", { class: "choices", role: "radiogroup", label: "Masks to choose from" });
  const done = button({ class: "button primary", testid: "done", title: "Done (Enter)", press: () => editing.done() }, icon("check"), "Done");
  const spinner = h("span", { class: "spinner", label: "Working", role: "img" });
  const element = h("div", { class: "chooser card" }, choices, spinner, done);

  function draw(canvas: HTMLCanvasElement, object: SceneObject, choice: Choice): void {
    const ratio = Math.min(window.devicePixelRatio || 1, 2);
    [canvas.width, canvas.height] = [WIDTH * ratio, HEIGHT * ratio];
    const context = canvas.getContext("2d") as CanvasRenderingContext2D;
    const { size } = store.get();
    if (!size) return;
    // All choices are shown in the same frame, the largest one's, so that they can be compared.
    const boxes = object.choices.filter((each) => each.area > 0).map((each) => each.box);
    const [x0, y0] = [Math.min(...boxes.map((box) => box[0])), Math.min(...boxes.map((box) => box[1]))];
    const [x1, y1] = [Math.max(...boxes.map((box) => box[2])), Math.max(...boxes.map((box) => box[3]))];
    const scale = Math.min(canvas.width / (x1 - x0), canvas.height / (y1 - y0)) * 0.86;
    const view = { scale, tx: canvas.width / 2 - ((x0 + x1) / 2) * scale, ty: canvas.height / 2 - ((y0 + y1) / 2) * scale };
    const picture = photo()?.at(scale);
    if (picture) context.drawImage(picture, view.tx, view.ty, size[1] * scale, size[0] * scale);
    context.fillStyle = "rgb(0 0 0 / 0.25)";
    context.fillRect(0, 0, canvas.width, canvas.height);
    if (choice.area === 0) return;
    const step = stepFor(choice.box, Math.max(1, Math.floor(1 / scale)));
    const tile = tileOfRuns(app.runsOf(choice.rle), size, choice.box, step);
    const mask = pictureOf(tile, colourFor(store.get(), object.id, object.categoryId), Math.max(1, Math.round(1 / (scale * step))));
    context.globalAlpha = FILLING_ALPHA;
    drawAt(context, view, mask.filling, mask.box);
    context.globalAlpha = 1;
    drawAt(context, view, mask.border, mask.box);
  }

  let drawn: readonly Choice[] | null = null;

  function fill(object: SceneObject): void {
    if (drawn !== object.choices) {
      drawn = object.choices;
      choices.replaceChildren(
        ...object.choices.map((choice, i) => {
          const canvas = h("canvas", { class: "choice-picture", attrs: { "aria-hidden": "true" } });
          // After the mask itself is on the screen: the click must feel instant.
          requestAnimationFrame(() => setTimeout(() => draw(canvas, object, choice)));
          return button(
            {
              class: "choice",
              testid: `choice-${i}`,
              role: "radio",
              label: `Mask ${i + 1}, predicted IoU ${choice.iou.toFixed(2)}`,
              title: `Mask ${i + 1} (${i + 1})`,
              press: () => editing.choose(i),
            },
            canvas,
            h("span", { class: "choice-text" }, h("kbd", {}, String(i + 1)), `${Math.round(Math.min(Math.max(choice.iou, 0), 1) * 100)}%`),
          );
        }),
      );
    }
    [...choices.children].forEach((each, i) => {
      each.setAttribute("aria-checked", String(i === object.choice));
      each.setAttribute("tabindex", i === object.choice ? "0" : "-1");
    });
  }
  choices.addEventListener("keydown", (event) => {
    const step = event.key === "ArrowRight" ? 1 : event.key === "ArrowLeft" ? -1 : 0;
    const object = findObject(store.get().scene, store.get().scene.selected);
    if (step === 0 || !object) return;
    const next = (object.choice + step + object.choices.length) % object.choices.length;
    editing.choose(next);
    (choices.children[next] as HTMLElement | undefined)?.focus();
    event.preventDefault();
  });

  store.watch(
    (state) => [findObject(state.scene, state.scene.selected), state.pending !== null],
    () => {
      const { scene, pending } = store.get();
      const object = findObject(scene, scene.selected);
      show(element, object !== null || pending !== null);
      show(choices, object !== null && object.choices.length > 1);
      show(spinner, pending !== null);
      show(done, object !== null);
      if (object && object.choices.length > 1) fill(object);
    },
    sameMembers,
  );
  return element;
}
