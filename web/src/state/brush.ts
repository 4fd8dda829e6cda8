/** Brush strokes on masks: pixels whose centre is within the radius of the stroke. Pure, in place on the caller's copy. */

import type { Box, Point, Size } from "./types";

export const LEAST_RADIUS = 1;
export const MOST_RADIUS = 400;

/** The next smaller or larger brush; steps grow with the size, so that both ends are reached soon. */
export function stepRadius(radius: number, direction: 1 | -1): number {
  const next = direction > 0 ? Math.max(radius * 1.25, radius + 1) : Math.min(radius / 1.25, radius - 1);
  return Math.round(Math.min(Math.max(next, LEAST_RADIUS), MOST_RADIUS));
}

/**
 * Set (1) or clear (0) what a stroke covers. mask: (H*W) row by row, changed in place. stroke: image pixels, one point is
 * a dab. Returns the box that may have changed, or null when the stroke lies outside the image.
 */
export function paintStroke(
  mask: Uint8Array,
  [height, width]: Size,
  stroke: readonly Point[],
  radius: number,
  value: 0 | 1,
): Box | null {
  let touched: [number, number, number, number] | null = null;
  const within = radius * radius;
  for (let i = 0; i < stroke.length; i += 1) {
    const from = stroke[Math.max(i - 1, 0)] as Point;
    const to = stroke[i] as Point;
    if (i === 0 && stroke.length > 1) continue;
    const x0 = Math.max(Math.floor(Math.min(from[0], to[0]) - radius), 0);
    const y0 = Math.max(Math.floor(Math.min(from[1], to[1]) - radius), 0);
    const x1 = Math.min(Math.ceil(Math.max(from[0], to[0]) + radius) + 1, width);
    const y1 = Math.min(Math.ceil(Math.max(from[1], to[1]) + radius) + 1, height);
    if (x0 >= x1 || y0 >= y1) continue;
    const dx = to[0] - from[0];
    const dy = to[1] - from[1];
    const length = dx * dx + dy * dy;
    for (let y = y0; y < y1; y += 1) {
      for (let x = x0; x < x1; x += 1) {
        const px = x + 0.5 - from[0];
        const py = y + 0.5 - from[1];
        const along = length === 0 ? 0 : Math.min(Math.max((px * dx + py * dy) / length, 0), 1);
        const ox = px - along * dx;
        const oy = py - along * dy;
        if (ox * ox + oy * oy <= within) mask[y * width + x] = value;
      }
    }
    touched = touched
      ? [Math.min(touched[0], x0), Math.min(touched[1], y0), Math.max(touched[2], x1), Math.max(touched[3], y1)]
      : [x0, y0, x1, y1];
  }
  return touched;
}
