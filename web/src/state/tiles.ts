/** Masks as pixels to draw: a filling and a border, only as large as the mask. Pure; no canvas. */

import { eachSpan, type Runs } from "./runs";
import type { Box, Size } from "./types";

const MOST_PIXELS = 1_500_000;

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

/**
 * RGBA, width*height*4, of one colour, opaque: the whole mask, and apart from it a border `edge` tile pixels wide inside
 * it. They are drawn apart because fillings must not grow darker where masks lie over one another.
 */
export function shade(
  tile: Tile,
  [red, green, blue]: readonly [number, number, number],
  edge: number,
): { filling: Uint8ClampedArray; border: Uint8ClampedArray } {
  const { width, height, inside } = tile;
  const filling = new Uint8ClampedArray(width * height * 4);
  const border = new Uint8ClampedArray(width * height * 4);
  const paint = (pixels: Uint8ClampedArray, to: number): void => {
    pixels[to] = red;
    pixels[to + 1] = green;
    pixels[to + 2] = blue;
    pixels[to + 3] = 255;
  };
  for (let y = 0, at = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1, at += 1) {
      if (!inside[at]) continue;
      paint(filling, at * 4);
      const within =
        x >= edge &&
        y >= edge &&
        x < width - edge &&
        y < height - edge &&
        inside[at - edge] &&
        inside[at + edge] &&
        inside[at - edge * width] &&
        inside[at + edge * width];
      if (!within) paint(border, at * 4);
    }
  }
  return { filling, border };
}
