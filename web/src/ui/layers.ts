/** The three canvases of the stage: photograph, masks, overlay. Each is drawn again only when what it shows changed. */

import type { AppState, Drawing } from "../state/app_state";
import { openProposals } from "../state/finding";
import { rgb } from "../state/palette";
import type { Runs } from "../state/runs";
import { findObject } from "../state/scene";
import type { Store } from "../state/store";
import { sameMembers } from "../state/store";
import { stepFor, tileOfMask } from "../state/tiles";
import type { Box, Rle, Size, View } from "../state/types";
import { h } from "./dom";
import { colourFor, drawMarks, tracePath } from "./marks";
import type { Photo } from "./photo";
import { createTileCache, levelOf, type Picture, pictureOf, tileEdge, tileStep } from "./tile_cache";

const NEW_TILES = 12; // milliseconds of a frame for new pictures of masks
const PREVIEW_COLOUR = "#ffffff";

export interface Layers {
  readonly element: HTMLElement;
  setPhoto(photo: Photo | null): void;
  resize(width: number, height: number): void;
}

export function createLayers(store: Store<AppState>, runsOf: (rle: Rle) => Runs): Layers {
  const canvases = ["photo", "masks", "marks"].map((name) => h("canvas", { class: `layer layer-${name}`, attrs: { "aria-hidden": "true" } }));
  const contexts = canvases.map((canvas) => canvas.getContext("2d") as CanvasRenderingContext2D);
  const [photoContext, maskContext, markContext] = contexts as [CanvasRenderingContext2D, CanvasRenderingContext2D, CanvasRenderingContext2D];
  const element = h("div", { class: "layers" }, ...canvases);
  const tiles = createTileCache(runsOf);
  const dirty = { photo: true, masks: true, marks: true };
  let photo: Photo | null = null;
  let ratio = 1;
  let frame = 0;
  let preview: { readonly mask: Uint8Array; readonly picture: Picture } | null = null;

  function touch(...names: (keyof typeof dirty)[]): void {
    for (const name of names) dirty[name] = true;
    frame ||= requestAnimationFrame(draw);
  }

  function draw(): void {
    frame = 0;
    const state = store.get();
    const work = { ...dirty };
    dirty.photo = dirty.masks = dirty.marks = false;
    if (work.photo) drawPhoto(state);
    if (work.masks) drawMasks(state);
    if (work.marks) {
      clear(markContext);
      if (state.imageId) drawMarks(markContext, state);
    }
  }

  function clear(context: CanvasRenderingContext2D): void {
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, context.canvas.width, context.canvas.height);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
  }

  function drawPhoto(state: AppState): void {
    clear(photoContext);
    const { view, size } = state;
    if (!photo || !size) return;
    const device = view.scale * ratio;
    photoContext.imageSmoothingEnabled = device < 3; // pixels are pixels when one looks closely
    photoContext.imageSmoothingQuality = "high";
    photoContext.drawImage(photo.at(device), view.tx, view.ty, size[1] * view.scale, size[0] * view.scale);
  }

  function drawMasks(state: AppState): void {
    clear(maskContext);
    const { view, scene, hidden, drawing, proposals, proposal, size } = state;
    if (!size) return;
    const device = view.scale * ratio;
    maskContext.imageSmoothingEnabled = device < 1.5;
    tiles.begin(NEW_TILES);
    const one = findObject(scene, scene.selected);
    const open = openProposals(proposals, scene.objects);
    for (const object of scene.objects) {
      if (hidden.has(object.id)) continue;
      const colour = colourFor(state, object.id, object.categoryId);
      maskContext.globalAlpha = open.length > 0 ? 0.35 : one && object !== one ? 0.6 : 1;
      const picture = object.area > 0 ? tiles.get({ ...object, colour }, device) : null;
      if (object === one && drawing?.kind === "paint") drawPainted(view, picture, colour, drawing);
      else if (picture) drawPicture(maskContext, view, picture);
    }
    if (!one && drawing?.kind === "paint" && drawing.value === 1) {
      drawPainted(view, null, colourFor(state, "", state.categoryId), drawing);
    }
    for (const each of open) {
      maskContext.globalAlpha = proposal === null ? 0.85 : each.id === proposal ? 1 : 0.3;
      const picture = tiles.get({ ...each, colour: colourFor(state, each.id, null) }, device);
      if (picture) drawPicture(maskContext, view, picture);
    }
    maskContext.globalAlpha = 0.85;
    if (state.preview) drawPicture(maskContext, view, previewPicture(state, device));
    maskContext.globalAlpha = 1;
    if (tiles.behind) touch("masks");
  }

  function previewPicture(state: AppState, device: number): Picture {
    const shown = state.preview as NonNullable<AppState["preview"]>;
    if (preview?.mask !== shown.mask) {
      const fine = shown.width / (state.size as Size)[1]; // of the mask's pixels, for one of the image's
      const [x0, y0, x1, y1] = shown.box;
      const box: Box = [
        Math.floor(x0 * fine),
        Math.floor(y0 * fine),
        Math.min(Math.ceil(x1 * fine), shown.width),
        Math.min(Math.ceil(y1 * fine), shown.height),
      ];
      const level = levelOf(device / fine);
      const step = stepFor(box, tileStep(level));
      const small = pictureOf(tileOfMask(shown.mask, shown.width, box, step), PREVIEW_COLOUR, tileEdge(level, step));
      const [left, top, right, bottom] = small.box;
      const picture = { canvas: small.canvas, box: [left / fine, top / fine, right / fine, bottom / fine] as const };
      preview = { mask: shown.mask, picture };
    }
    return preview.picture;
  }

  const scratch = document.createElement("canvas");

  /** The object under the brush as it will be: the stroke adds to its picture or takes from it. */
  function drawPainted(
    view: View,
    picture: Picture | null,
    colour: string,
    drawing: Extract<Drawing, { kind: "paint" }>,
  ): void {
    const { width, height } = maskContext.canvas;
    if (scratch.width !== width || scratch.height !== height) [scratch.width, scratch.height] = [width, height];
    const context = scratch.getContext("2d") as CanvasRenderingContext2D;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, width, height);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    tracePath(context, view, drawing.points);
    context.lineCap = context.lineJoin = "round";
    context.lineWidth = drawing.radius * 2 * view.scale;
    context.globalCompositeOperation = "source-over";
    if (drawing.value === 1) {
      context.strokeStyle = `rgb(${rgb(colour).join(" ")} / 0.4)`;
      context.stroke();
      context.globalCompositeOperation = "destination-over";
      if (picture) drawPicture(context, view, picture);
    } else {
      if (picture) drawPicture(context, view, picture);
      context.globalCompositeOperation = "destination-out";
      context.strokeStyle = "#000";
      context.stroke();
    }
    context.globalCompositeOperation = "source-over";
    maskContext.save();
    maskContext.setTransform(1, 0, 0, 1, 0, 0);
    maskContext.drawImage(scratch, 0, 0);
    maskContext.restore();
  }

  const visible = (state: AppState): readonly unknown[] => [
    state.scene.objects,
    state.scene.selected,
    state.hidden,
    state.categories,
    state.proposals,
    state.proposal,
    state.preview,
    state.view,
    state.drawing?.kind === "paint" ? state.drawing : null,
    state.size,
  ];
  store.watch(visible, () => touch("masks"), sameMembers);
  store.watch((state) => [state.view, state.size], () => touch("photo"), sameMembers);
  store.watch(
    (state) => [state.view, state.scene.objects, state.scene.selected, state.pending, state.drawing, state.pointer, state.crosshair, state.tool, state.radius],
    () => touch("marks"),
    sameMembers,
  );

  return {
    element,
    setPhoto(next) {
      photo?.close();
      photo = next;
      touch("photo");
    },
    resize(width, height) {
      ratio = Math.min(window.devicePixelRatio || 1, 3);
      for (const canvas of canvases) {
        canvas.width = Math.max(Math.round(width * ratio), 1);
        canvas.height = Math.max(Math.round(height * ratio), 1);
      }
      drawNow();
    },
  };

  // At once: a cleared canvas must not be seen.
  function drawNow(): void {
    touch("photo", "masks", "marks");
    cancelAnimationFrame(frame);
    draw();
  }
}

function drawPicture(context: CanvasRenderingContext2D, view: View, { canvas, box }: Picture): void {
  const [x0, y0, x1, y1] = box;
  context.drawImage(
    canvas,
    x0 * view.scale + view.tx,
    y0 * view.scale + view.ty,
    (x1 - x0) * view.scale,
    (y1 - y0) * view.scale,
  );
}

