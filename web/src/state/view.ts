/** Zoom and pan: pure numbers between image pixels and CSS pixels of the stage. */

import type { Box, Point, Size, View } from "./types";

export const MOST_SCALE = 32;
const MARGIN = 24; // CSS pixels around an image that fits
const KEEP = 48; // at least so much of the image stays in sight

export function fitView(image: Size, stage: Size, margin = MARGIN): View {
  const [height, width] = image;
  const [stageHeight, stageWidth] = stage;
  const free = (length: number): number => Math.max(length - 2 * margin, 16);
  const scale = Math.min(free(stageWidth) / width, free(stageHeight) / height, MOST_SCALE);
  return { scale, tx: (stageWidth - width * scale) / 2, ty: (stageHeight - height * scale) / 2 };
}

/** Where an image point is on the stage. */
export function toStage(view: View, [x, y]: Point): Point {
  return [x * view.scale + view.tx, y * view.scale + view.ty];
}

/** Which image point a place on the stage shows; it may lie outside the image. */
export function toImage(view: View, [x, y]: Point): Point {
  return [(x - view.tx) / view.scale, (y - view.ty) / view.scale];
}

/** Zoom by a factor so that the image point under `at` (stage) stays where it is. */
export function zoomAt(view: View, at: Point, factor: number, image: Size, stage: Size): View {
  const least = Math.min(fitView(image, stage).scale * 0.5, 1);
  const scale = Math.min(Math.max(view.scale * factor, least), MOST_SCALE);
  const [x, y] = toImage(view, at);
  return keepInSight({ scale, tx: at[0] - x * scale, ty: at[1] - y * scale }, image, stage);
}

export function panBy(view: View, dx: number, dy: number, image: Size, stage: Size): View {
  return keepInSight({ scale: view.scale, tx: view.tx + dx, ty: view.ty + dy }, image, stage);
}

/** Two fingers: what was under them stays under them. */
export function pinch(
  view: View,
  before: readonly [Point, Point],
  after: readonly [Point, Point],
  image: Size,
  stage: Size,
): View {
  const middle = ([a, b]: readonly [Point, Point]): Point => [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2];
  const spread = ([a, b]: readonly [Point, Point]): number => Math.hypot(a[0] - b[0], a[1] - b[1]);
  const from = middle(before);
  const to = middle(after);
  const zoomed = zoomAt(view, from, spread(after) / Math.max(spread(before), 1), image, stage);
  return panBy(zoomed, to[0] - from[0], to[1] - from[1], image, stage);
}

/** Brings a box into sight when it is not, without changing the zoom more than it must. */
export function reveal(view: View, box: Box, image: Size, stage: Size): View {
  const [x0, y0] = toStage(view, [box[0], box[1]]);
  const [x1, y1] = toStage(view, [box[2], box[3]]);
  const [height, width] = stage;
  if (x0 >= 0 && y0 >= 0 && x1 <= width && y1 <= height) return view;
  if (x1 - x0 > width || y1 - y0 > height) return fitView(image, stage);
  const shift = (low: number, high: number, length: number): number =>
    low < 0 ? MARGIN - low : high > length ? length - MARGIN - high : 0;
  return panBy(view, shift(x0, x1, width), shift(y0, y1, height), image, stage);
}

function keepInSight(view: View, image: Size, stage: Size): View {
  const clamp = (t: number, length: number, room: number): number =>
    Math.min(Math.max(t, Math.min(KEEP, room) - length), room - Math.min(KEEP, room));
  return {
    scale: view.scale,
    tx: clamp(view.tx, image[1] * view.scale, stage[1]),
    ty: clamp(view.ty, image[0] * view.scale, stage[0]),
  };
}
