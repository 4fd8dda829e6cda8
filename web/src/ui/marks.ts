/** The overlay: prompts, what the hand draws, the preview, the brush and the crosshair. Draws, decides nothing. */

import type { AppState } from "../state/app_state";
import { colourOfId } from "../state/palette";
import { findObject } from "../state/scene";
import type { Box, ObjectPrompt, Point, View } from "../state/types";
import { toStage } from "../state/view";

const POSITIVE = "#16c784";
const NEGATIVE = "#ff4d5e";

export function drawMarks(context: CanvasRenderingContext2D, state: AppState): void {
  const { view, scene, pending, drawing, tool } = state;
  const shown = pending?.prompt ?? (tool === "move" ? null : (findObject(scene, scene.selected)?.prompt ?? null));
  if (shown) drawPrompt(context, view, shown);
  if (drawing?.kind === "box") drawBox(context, view, [...ordered(drawing.from, drawing.to)]);
  if (drawing?.kind === "stroke") drawLine(context, view, drawing.points, drawing.label ? POSITIVE : NEGATIVE, 4);
  if ((tool === "brush" || tool === "eraser") && state.pointer) drawRing(context, view, state.pointer, state.radius);
  if (state.crosshair) drawCrosshair(context, view, state.crosshair);
}

function drawPrompt(context: CanvasRenderingContext2D, view: View, prompt: ObjectPrompt): void {
  if (prompt.box) drawBox(context, view, prompt.box);
  if (prompt.scribble) drawLine(context, view, prompt.scribble, POSITIVE, 4);
  if (prompt.scribble_negative) drawLine(context, view, prompt.scribble_negative, NEGATIVE, 4);
  prompt.points.forEach((point, i) => drawPoint(context, view, point, prompt.labels[i] ?? 1));
}

function drawPoint(context: CanvasRenderingContext2D, view: View, point: Point, label: number): void {
  const [x, y] = toStage(view, point);
  context.save();
  context.shadowColor = "rgb(0 0 0 / 0.45)";
  context.shadowBlur = 5;
  context.beginPath();
  context.arc(x, y, 7, 0, 2 * Math.PI);
  context.fillStyle = "#fff";
  context.fill();
  context.restore();
  context.beginPath();
  context.arc(x, y, 5.4, 0, 2 * Math.PI);
  context.fillStyle = label ? POSITIVE : NEGATIVE;
  context.fill();
  // The sign too: colours alone do not reach everyone.
  context.beginPath();
  context.moveTo(x - 2.8, y);
  context.lineTo(x + 2.8, y);
  if (label) {
    context.moveTo(x, y - 2.8);
    context.lineTo(x, y + 2.8);
  }
  context.lineWidth = 1.7;
  context.strokeStyle = "#fff";
  context.stroke();
}

function drawBox(context: CanvasRenderingContext2D, view: View, box: Box | number[]): void {
  const [x0, y0] = toStage(view, [box[0] as number, box[1] as number]);
  const [x1, y1] = toStage(view, [box[2] as number, box[3] as number]);
  context.lineWidth = 3;
  context.strokeStyle = "rgb(0 0 0 / 0.45)";
  context.strokeRect(x0, y0, x1 - x0, y1 - y0);
  context.lineWidth = 1.5;
  context.strokeStyle = "#fff";
  context.setLineDash([6, 4]);
  context.strokeRect(x0, y0, x1 - x0, y1 - y0);
  context.setLineDash([]);
}

function drawLine(
  context: CanvasRenderingContext2D,
  view: View,
  points: readonly Point[],
  colour: string,
  width: number,
): void {
  context.lineCap = context.lineJoin = "round";
  for (const [style, extra] of [["rgb(255 255 255 / 0.9)", 2.5], [colour, 0]] as const) {
    tracePath(context, view, points);
    context.lineWidth = width + extra;
    context.strokeStyle = style;
    context.stroke();
  }
}

/** A path along image points; a single one is a dot. */
export function tracePath(context: CanvasRenderingContext2D, view: View, points: readonly Point[]): void {
  context.beginPath();
  points.forEach((point, i) => {
    const [x, y] = toStage(view, point);
    if (i === 0) context.moveTo(x, y);
    context.lineTo(x + (points.length === 1 ? 0.01 : 0), y);
  });
}

function drawRing(context: CanvasRenderingContext2D, view: View, point: Point, radius: number): void {
  const [x, y] = toStage(view, point);
  for (const [style, width] of [["rgb(0 0 0 / 0.5)", 3], ["#fff", 1.4]] as const) {
    context.beginPath();
    context.arc(x, y, Math.max(radius * view.scale, 1), 0, 2 * Math.PI);
    context.lineWidth = width;
    context.strokeStyle = style;
    context.stroke();
  }
}

function drawCrosshair(context: CanvasRenderingContext2D, view: View, point: Point): void {
  const [x, y] = toStage(view, point);
  for (const [style, width] of [["rgb(0 0 0 / 0.6)", 4], ["#fff", 1.6]] as const) {
    context.beginPath();
    for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]] as const) {
      context.moveTo(x + dx * 4, y + dy * 4);
      context.lineTo(x + dx * 15, y + dy * 15);
    }
    context.lineWidth = width;
    context.strokeStyle = style;
    context.stroke();
  }
}

function ordered(a: Point, b: Point): Box {
  return [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[0], b[0]), Math.max(a[1], b[1])];
}

/** The colour of an object: its category's, or its own. */
export function colourFor(state: AppState, id: string, categoryId: number | null): string {
  return state.categories.find((category) => category.id === categoryId)?.colour ?? colourOfId(id);
}
