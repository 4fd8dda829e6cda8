/** Masks as small canvases, made when they are first drawn and again, little by little, when the zoom asks for finer ones. */

import { rgb } from "../state/palette";
import type { Runs } from "../state/runs";
import { shade, stepFor, type Tile, tileOfRuns } from "../state/tiles";
import type { Box, Rle, View } from "../state/types";

export interface Drawable {
  readonly rle: Rle;
  readonly box: Box;
  readonly colour: string;
}

/** Both opaque and of the same size; who draws the filling makes it translucent. */
export interface Picture {
  readonly filling: HTMLCanvasElement;
  readonly border: HTMLCanvasElement;
  readonly box: Box; // where they lie, image pixels
}

interface Kept extends Picture {
  readonly level: number;
  readonly colour: string;
}

export interface TileCache {
  /** A picture of the mask, perhaps coarser than wished; null when the time of this frame is over. */
  get(what: Drawable, deviceScale: number): Picture | null;
  /**
   * Begin a frame: so many milliseconds may be spent on new pictures, and on finer ones only where the view rests.
   * Afterwards `behind` says whether some wait.
   */
  begin(milliseconds: number, resting: boolean): void;
  readonly behind: boolean;
}

const BORDER = 2.2; // device pixels

export const FILLING_ALPHA = 0.42;

export function pictureOf(tile: Tile, colour: string, edge: number): Picture {
  const { filling, border } = shade(tile, rgb(colour), edge);
  return { filling: canvasOf(tile, filling), border: canvasOf(tile, border), box: tile.box };
}

function canvasOf({ width, height }: Tile, pixels: Uint8ClampedArray): HTMLCanvasElement {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [Math.max(width, 1), Math.max(height, 1)];
  const data = new ImageData(canvas.width, canvas.height);
  if (pixels.length > 0) data.data.set(pixels);
  (canvas.getContext("2d") as CanvasRenderingContext2D).putImageData(data, 0, 0);
  return canvas;
}

/** Draws one of a picture's two canvases at its place. */
export function drawAt(
  context: CanvasRenderingContext2D,
  view: View,
  canvas: HTMLCanvasElement,
  [x0, y0, x1, y1]: Box,
): void {
  const { scale, tx, ty } = view;
  context.drawImage(canvas, x0 * scale + tx, y0 * scale + ty, (x1 - x0) * scale, (y1 - y0) * scale);
}

/** Steps and borders for a zoom: levels are powers of two, so that a pinch does not make everything anew. */
export function levelOf(deviceScale: number): number {
  return Math.round(Math.log2(deviceScale));
}

export function tileStep(level: number): number {
  return Math.max(1, Math.floor(1 / 2 ** level));
}

export function tileEdge(level: number, step: number): number {
  return Math.max(1, Math.round(BORDER / (2 ** level * step)));
}

export function createTileCache(runsOf: (rle: Rle) => Runs): TileCache {
  const kept = new WeakMap<Rle, Kept>();
  let until = 0;
  let behind = false;
  let refine = true;

  return {
    begin(milliseconds, resting) {
      until = performance.now() + milliseconds;
      refine = resting;
      behind = false;
    },
    get(what, deviceScale) {
      const level = Math.min(Math.max(levelOf(deviceScale), -5), 2);
      const old = kept.get(what.rle);
      if (old && old.level === level && old.colour === what.colour) return old;
      if (performance.now() > until || (old?.colour === what.colour && !refine)) {
        behind = true;
        return old ?? null;
      }
      const step = stepFor(what.box, tileStep(level));
      const tile = tileOfRuns(runsOf(what.rle), what.rle.size, what.box, step);
      const made = { ...pictureOf(tile, what.colour, tileEdge(level, step)), level, colour: what.colour };
      kept.set(what.rle, made);
      return made;
    },
    get behind() {
      return behind;
    },
  };
}
