/** The photograph as pictures of halving sizes, so that drawing 24 megapixels small costs what small costs. */

import type { Size } from "../state/types";

export interface Photo {
  readonly size: Size;
  /** The smallest picture that still has a pixel for each device pixel at this scale. */
  at(deviceScale: number): CanvasImageSource;
  close(): void;
}

const LEAST_SIDE = 700;

/** Raises an Error when the browser cannot show the file's format. */
export async function openPhoto(blob: Blob): Promise<Photo> {
  let full: ImageBitmap;
  try {
    full = await createImageBitmap(blob);
  } catch {
    throw new Error("This browser cannot show images of this format. Masks still work where the server reads it.");
  }
  const levels: { picture: CanvasImageSource; part: number }[] = [{ picture: full, part: 1 }];
  let [width, height] = [full.width, full.height];
  let last: CanvasImageSource = full;
  while (Math.max(width, height) / 2 >= LEAST_SIDE) {
    width = Math.round(width / 2);
    height = Math.round(height / 2);
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [width, height];
    const context = canvas.getContext("2d") as CanvasRenderingContext2D;
    context.imageSmoothingQuality = "high";
    context.drawImage(last, 0, 0, width, height);
    levels.push({ picture: canvas, part: width / full.width });
    last = canvas;
  }
  return {
    size: [full.height, full.width],
    at: (scale) => ([...levels].reverse().find((level) => level.part >= scale) ?? levels[0])?.picture ?? full,
    close: () => full.close(),
  };
}

/** A small picture of a file for lists, or null when the browser cannot show it. */
export async function thumbnail(blob: Blob, width: number, height: number): Promise<Blob | null> {
  try {
    const whole = await createImageBitmap(blob);
    const scale = Math.max(width / whole.width, height / whole.height);
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [width, height];
    const context = canvas.getContext("2d") as CanvasRenderingContext2D;
    context.imageSmoothingQuality = "high";
    const [w, t] = [whole.width * scale, whole.height * scale];
    context.drawImage(whole, (width - w) / 2, (height - t) / 2, w, t);
    whole.close();
    return await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.82));
  } catch {
    return null;
  }
}
