/** Masks as pixels to draw: a translucent filling with a firm border, only as large as the mask. Pure; no canvas. */

import { eachSpan, type Runs } from "./runs";
import type { Box, Size } from "./types";

const FILL = 102; // of 255
const EDGE = 242;
const MOST_PIXELS = 4_000_000;

export interface Tile {
  readonly box: Box; // where the tile lies, image pixels; its sides are multiples of step, so it may reach over the image
  readonly step: number; // image pixels for each of its own
  readonly width: number;
  readonly height: number;
  readonly inside: Uint8Array; // width*height, 1 in the mask
}

/** A step so that the tile of a box stays small enough to keep. */
export function stepFor(box: Box, least = 1): number {
  let step = least;
  while (((box[2] - box[0]) / step) * ((box[3] - box[1]) / step) > MOST_PIXELS) step += 1;
  return step;
}

function frame(box: Box, step: number): Omit<Tile, "inside"> {
  const width = Math.ceil((box[2] - box[0]) / step);
  const height = Math.ceil((box[3] - box[1]) / step);
  return { box: [box[0], box[1], box[0] + width * step, box[1] + height * step], step, width, height };
}

export function tileOfRuns(runs: Runs, [imageHeight]: Size, box: Box, step: number): Tile {
  const tile = frame(box, step);
  const inside = new Uint8Array(tile.width * tile.height);
  eachSpan(runs, imageHeight, (x, top, bottom) => {
    const column = x - box[0];
    if (column < 0 || column % step !== 0) return;
    const left = column / step;
    if (left >= tile.width) return;
    const first = Math.max(Math.ceil((top - box[1]) / step), 0);
    const last = Math.min(Math.ceil((bottom - box[1]) / step), tile.height);
    for (let y = first, at = first * tile.width + left; y < last; y += 1, at += tile.width) inside[at] = 1;
  });
  return { ...tile, inside };
}

export function tileOfMask(mask: Uint8Array, width: number, box: Box, step: number): Tile {
  const tile = frame(box, step);
  const inside = new Uint8Array(tile.width * tile.height);
  const right = Math.min(box[2], width);
  const bottom = Math.min(box[3], mask.length / width);
  for (let y = box[1], to = 0; y < bottom; y += step, to += tile.width) {
    for (let x = box[0], at = to; x < right; x += step, at += 1) if (mask[y * width + x]) inside[at] = 1;
  }
  return { ...tile, inside };
}

/** RGBA, width*height*4: the filling, and a border `edge` tile pixels wide inside it. */
export function shade(tile: Tile, [red, green, blue]: readonly [number, number, number], edge: number): Uint8ClampedArray {
  const { width, height, inside } = tile;
  const pixels = new Uint8ClampedArray(width * height * 4);
  for (let y = 0, at = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1, at += 1) {
      if (!inside[at]) continue;
      const within =
        x >= edge &&
        y >= edge &&
        x < width - edge &&
        y < height - edge &&
        inside[at - edge] &&
        inside[at + edge] &&
        inside[at - edge * width] &&
        inside[at + edge * width];
      const to = at * 4;
      pixels[to] = red;
      pixels[to + 1] = green;
      pixels[to + 2] = blue;
      pixels[to + 3] = within ? FILL : EDGE;
    }
  }
  return pixels;
}
