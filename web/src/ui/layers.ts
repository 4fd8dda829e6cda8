/** The three canvases of the stage: photograph, masks, overlay. Each is drawn again only when what it shows changed. */

import type { AppState, Drawing } from "../state/app_state";
import { openProposals } from "../state/finding";
import { rgb } from "../state/palette";
import { readRuns, type Runs } from "../state/runs";
import { findObject } from "../state/scene";
import type { Store } from "../state/store";
import { sameMembers } from "../state/store";
import { stepFor, tileOfRuns } from "../state/tiles";
import type { Box, Rle, Size, View } from "../state/types";
import { h } from "./dom";
import { colourFor, drawMarks, tracePath } from "./marks";
import type { Photo } from "./photo";
import { createTileCache, drawAt, FILLING_ALPHA, levelOf, type Picture, pictureOf, tileEdge, tileStep } from "./tile_cache";

const NEW_TILES = 12; // milliseconds of a frame for new pictures of masks
const REST = 120; // milliseconds without a change of zoom, after which masks are made finer
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
  let moved = -Infinity; // when the view changed last
  let waiting: ReturnType<typeof setTimeout> | undefined;
  let preview: { readonly rle: Rle; readonly picture: Picture } | null = null;

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
    photoContext.imageSmoothingQuality = "low"; // the picture is at most twice too large: nothing is left out
    photoContext.drawImage(photo.at(device), view.tx, view.ty, size[1] * view.scale, size[0] * view.scale);
  }

  function drawMasks(state: AppState): void {
    clear(maskContext);
    const { view, scene, hidden, drawing, proposals, proposal, size } = state;
    if (!size) return;
    const device = view.scale * ratio;
    tiles.begin(NEW_TILES, performance.now() - moved > REST);
    const one = findObject(scene, scene.selected);
    const open = openProposals(proposals, scene.objects);
    const painted = drawing?.kind === "paint" ? drawing : null;
    const others: Picture[] = [];
    let own: Picture | null = null;
    for (const object of [...scene.objects].sort((a, b) => b.area - a.area)) {
      if (hidden.has(object.id) || object.area === 0) continue;
      const colour = colourFor(state, object.id, object.categoryId);
      const picture = tiles.get({ ...object, colour }, device);
      if (picture && object === one) own = picture;
      else if (picture) others.push(picture);
    }
    drawPictures(view, others, open.length > 0 ? 0.35 : one ? 0.6 : 1);
    const colour = one ? colourFor(state, one.id, one.categoryId) : colourFor(state, "", state.categoryId);
    if (painted) drawPainted(view, own, colour, painted);
    else if (own) drawPictures(view, [own], 1);
    const offered = new Map<string, Picture>();
    for (const each of open) {
      const picture = tiles.get({ ...each, colour: colourFor(state, each.id, null) }, device);
      if (picture) offered.set(each.id, picture);
    }
    const pointed = proposal === null ? undefined : offered.get(proposal);
    drawPictures(view, [...offered.values()], pointed ? 0.4 : 0.9);
    if (pointed) drawPictures(view, [pointed], 1);
    if (state.preview) drawPictures(view, [previewPicture(state, device)], 0.85);
    if (tiles.behind) later();
  }

  /** Go on with the pictures of masks: at once, or when the view has come to rest. */
  function later(): void {
    const rest = REST - (performance.now() - moved);
    if (rest <= 0) touch("masks");
    else {
      clearTimeout(waiting);
      waiting = setTimeout(() => touch("masks"), rest + 1);
    }
  }

  function cleanScratch(): CanvasRenderingContext2D {
    const { width, height } = maskContext.canvas;
    if (scratch.width !== width || scratch.height !== height) [scratch.width, scratch.height] = [width, height];
    const context = scratch.getContext("2d") as CanvasRenderingContext2D;
    clear(context);
    context.globalCompositeOperation = "source-over";
    context.imageSmoothingEnabled = store.get().view.scale * ratio < 1.5;
    return context;
  }

  function drawScratch(alpha: number): void {
    maskContext.save();
    maskContext.setTransform(1, 0, 0, 1, 0, 0);
    maskContext.globalAlpha = alpha;
    maskContext.drawImage(scratch, 0, 0);
    maskContext.restore();
  }

  /** Several masks as one sheet: fillings do not add up where they overlap, the ones given last lie on top. */
  function drawPictures(view: View, pictures: readonly Picture[], strength: number): void {
    if (pictures.length === 0) return;
    const context = cleanScratch();
    for (const { filling, box } of pictures) drawAt(context, view, filling, box);
    drawScratch(FILLING_ALPHA * strength);
    maskContext.imageSmoothingEnabled = context.imageSmoothingEnabled;
    maskContext.globalAlpha = 0.95 * strength;
    for (const { border, box } of pictures) drawAt(maskContext, view, border, box);
    maskContext.globalAlpha = 1;
  }

  function previewPicture(state: AppState, device: number): Picture {
    const shown = state.preview as NonNullable<AppState["preview"]>;
    if (preview?.rle !== shown.rle) {
      const [height, width] = shown.rle.size;
      const fine = width / (state.size as Size)[1]; // of the mask's pixels, for one of the image's
      const [x0, y0, x1, y1] = shown.box;
      const box: Box = [
        Math.floor(x0 * fine),
        Math.floor(y0 * fine),
        Math.min(Math.ceil(x1 * fine), width),
        Math.min(Math.ceil(y1 * fine), height),
      ];
      const level = levelOf(device / fine);
      const step = stepFor(box, tileStep(level));
      const small = pictureOf(tileOfRuns(readRuns(shown.rle.counts), shown.rle.size, box, step), PREVIEW_COLOUR, tileEdge(level, step));
      const [left, top, right, bottom] = small.box;
      const picture = { ...small, box: [left / fine, top / fine, right / fine, bottom / fine] as const };
      preview = { rle: shown.rle, picture };
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
    const stroke = (context: CanvasRenderingContext2D): void => {
      tracePath(context, view, drawing.points);
      context.lineCap = context.lineJoin = "round";
      context.lineWidth = drawing.radius * 2 * view.scale;
      context.strokeStyle = `rgb(${rgb(colour).join(" ")})`;
      context.globalCompositeOperation = drawing.value === 1 ? "source-over" : "destination-out";
      context.stroke();
    };
    const filled = cleanScratch();
    if (picture) drawAt(filled, view, picture.filling, picture.box);
    stroke(filled);
    drawScratch(FILLING_ALPHA);
    if (!picture) return;
    const edged = cleanScratch();
    drawAt(edged, view, picture.border, picture.box);
    if (drawing.value === 0) stroke(edged);
    drawScratch(0.95);
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
  store.watch((state) => state.view.scale, () => (moved = performance.now()));
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
