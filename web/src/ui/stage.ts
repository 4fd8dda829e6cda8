/** The stage: gestures and keys on the image become the tool's actions; the photograph is loaded and kept in view. */

import type { App } from "../state/app";
import type { Editing } from "../state/editing";
import { type Finding, openProposals } from "../state/finding";
import { boxBetween } from "../state/prompt";
import { isTyping } from "../state/shortcuts";
import type { Point, Size } from "../state/types";
import { fitView, panBy, pinch, toImage, toStage, zoomAt } from "../state/view";
import { h } from "./dom";
import { type Gestures, listen } from "./gestures";
import { createHover } from "./hover";
import { createLayers } from "./layers";
import { openPhoto, type Photo } from "./photo";

export interface Stage {
  readonly element: HTMLElement;
  zoom(factor: number): void;
  fit(): void;
  focus(): void;
  photo(): Photo | null;
}

export function createStage(app: App, editing: Editing, finding: Finding): Stage {
  const { store, say } = app;
  const layers = createLayers(store, app.runsOf);
  const element = h(
    "div",
    {
      class: "stage",
      testid: "stage",
      role: "application",
      label: "Image. Click to add to an object, right-click to take away, drag a box. Arrow keys move a crosshair, Enter clicks there.",
      attrs: { tabindex: 0 },
    },
    layers.element,
  );
  const hover = createHover(app);
  let space = false;
  let photo: Photo | null = null;
  let fitted = true; // until the user zooms, the image follows the window

  const image = (): Size => store.get().size ?? [1, 1];
  const at = (place: Point): Point => toImage(store.get().view, place);
  const inside = ([x, y]: Point): boolean => x >= 0 && y >= 0 && x < image()[1] && y < image()[0];
  const ready = (): boolean => store.get().size !== null && store.get().busy === null;
  const choosing = (): boolean => openProposals(store.get().proposals, store.get().scene.objects).length > 0;

  function fit(): void {
    const { size, stage } = store.get();
    fitted = true;
    if (size) store.set({ view: fitView(size, stage, Math.min(...stage) < 600 ? 8 : 28) });
  }

  function zoom(factor: number, around?: Point): void {
    const { view, stage } = store.get();
    fitted = false;
    store.set({ view: zoomAt(view, around ?? [stage[1] / 2, stage[0] / 2], factor, image(), stage) });
  }

  /** A click of the present tool, with the mouse, a finger or the keyboard. */
  function click(point: Point, negative: boolean): void {
    const { tool, radius } = store.get();
    if (!ready()) {
      say.status("The image is not ready yet.");
      return;
    }
    if (!inside(point)) {
      if (tool === "move") editing.select(null);
      return;
    }
    if (choosing()) {
      const proposal = finding.at(point);
      if (proposal) finding.keep(proposal.id);
    } else if (tool === "move") editing.selectAt(point);
    else if (tool === "brush" || tool === "eraser") editing.paint([point], radius, tool === "brush" && !negative ? 1 : 0);
    else if (tool === "scribble") editing.stroke([point], negative ? 0 : 1);
    else editing.click(point, negative ? 0 : 1);
  }

  const gestures: Gestures = {
    pans: () => space || store.get().tool === "move" || choosing(),
    drawsAtOnce: () => store.get().tool === "brush" || store.get().tool === "eraser",
    tap(press) {
      store.set({ crosshair: null });
      if (press.mod) editing.selectAt(at(press.at));
      else click(at(press.at), press.alt || press.button === "right");
    },
    longPress(press) {
      navigator.vibrate?.(12);
      click(at(press.at), true);
    },
    dragStart(press) {
      const { tool, radius } = store.get();
      const point = at(press.at);
      const label = press.alt || press.button === "right" ? 0 : 1;
      hover.hide();
      if (!ready()) return;
      if (tool === "point") store.set({ drawing: { kind: "box", from: point, to: point } });
      else if (tool === "scribble") store.set({ drawing: { kind: "stroke", points: [point], label } });
      else if (tool !== "move") {
        const value = tool === "brush" && label === 1 ? 1 : 0;
        store.set({ drawing: { kind: "paint", points: [point], radius, value } });
      }
    },
    dragMove(place) {
      const { drawing } = store.get();
      const point = at(place);
      if (!drawing) return;
      if (drawing.kind === "box") store.set({ drawing: { ...drawing, to: point } });
      else store.set({ drawing: { ...drawing, points: [...drawing.points, point] } });
    },
    dragEnd(press) {
      const { drawing, size } = store.get();
      store.set({ drawing: null });
      if (!drawing || !size) return;
      if (drawing.kind === "box") {
        const box = boxBetween(drawing.from, drawing.to, size);
        if (box) editing.box(box, press.shift);
      } else if (drawing.kind === "stroke") {
        const points = drawing.points.filter(inside);
        if (points.length > 0) editing.stroke(points, drawing.label);
      } else editing.paint(drawing.points, drawing.radius, drawing.value);
    },
    dragCancel: () => store.set({ drawing: null }),
    pan(dx, dy) {
      const { view, stage } = store.get();
      fitted = false;
      store.set({ view: panBy(view, dx, dy, image(), stage) });
    },
    pinch(before, after) {
      const { view, stage } = store.get();
      fitted = false;
      store.set({ view: pinch(view, before, after, image(), stage) });
    },
    wheel: (place, factor) => zoom(factor, place),
    hover(place) {
      const point = place && at(place);
      const over = point && store.get().size && inside(point) ? point : null;
      store.set({ pointer: over });
      if (choosing()) store.set({ proposal: over ? (finding.at(over)?.id ?? null) : null });
      else hover.move(over);
    },
  };
  listen(element, gestures);

  // Keys on the image: a crosshair for those who have no pointer.
  let corner: Point | null = null;
  element.addEventListener("keydown", (event) => {
    const { size, view, crosshair, stage } = store.get();
    if (!size || event.ctrlKey || event.metaKey || event.altKey) return;
    const steps: Record<string, Point> = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const step = steps[event.key];
    if (step) {
      const length = (event.shiftKey ? 60 : 12) / view.scale;
      const from = crosshair ?? at([stage[1] / 2, stage[0] / 2]);
      const next: Point = [
        Math.min(Math.max(from[0] + (crosshair ? step[0] * length : 0), 0), size[1] - 1),
        Math.min(Math.max(from[1] + (crosshair ? step[1] * length : 0), 0), size[0] - 1),
      ];
      store.set({ crosshair: next });
      gestures.hover(toStage(view, next));
    } else if (event.key === "Enter" && crosshair) {
      click(crosshair, event.shiftKey);
    } else if (event.key.toLowerCase() === "x" && crosshair) {
      if (corner) {
        const box = boxBetween(corner, crosshair, size);
        if (box) editing.box(box, event.shiftKey);
        corner = null;
        store.set({ drawing: null });
      } else {
        corner = crosshair;
        say.status("First corner. Move and press X again.");
      }
    } else if (event.key === "Escape" && crosshair) {
      corner = null;
      store.set({ crosshair: null, preview: null, drawing: null });
      return; // Escape goes on to the page: it also deselects
    } else return;
    if (corner && store.get().crosshair) {
      store.set({ drawing: { kind: "box", from: corner, to: store.get().crosshair as Point } });
    }
    event.preventDefault();
    event.stopPropagation();
  });
  const releaseSpace = (): void => {
    space = false;
    element.classList.remove("panning");
  };
  // Space pans wherever the focus is, as long as the pointer is on the image or the image has the focus.
  window.addEventListener("keydown", (event) => {
    if (event.key !== " " || isTyping(event.target)) return;
    if (!element.matches(":hover") && document.activeElement !== element) return;
    event.preventDefault();
    space = true;
    element.classList.add("panning");
  });
  window.addEventListener("keyup", (event) => event.key === " " && releaseSpace());
  window.addEventListener("blur", releaseSpace);

  new ResizeObserver(() => {
    const { clientWidth: width, clientHeight: height } = element;
    store.set({ stage: [Math.max(height, 1), Math.max(width, 1)] });
    if (fitted) fit();
    layers.resize(width, height);
  }).observe(element);

  store.watch(
    (state) => state.photo,
    (blob) => {
      layers.setPhoto((photo = null));
      if (!blob) return;
      openPhoto(blob).then(
        (opened) => {
          if (store.get().photo !== blob) return opened.close();
          // Without a project the size is known only now.
          if (!store.get().size) store.set({ size: opened.size });
          layers.setPhoto((photo = opened));
        },
        (error: Error) => store.get().photo === blob && say.notice(error.message),
      );
    },
  );
  store.watch((state) => state.size, fit);
  store.watch((state) => state.imageId, (id) => {
    corner = null;
    if (id) fit();
  });
  store.watch((state) => state.tool, (tool) => (element.dataset["tool"] = tool));
  store.watch((state) => state.busy !== null, (busy) => element.setAttribute("aria-busy", String(busy)));

  return { element, zoom, fit, focus: () => element.focus({ preventScroll: true }), photo: () => photo };
}

