/** What the user pointed at, gathered: clicks, boxes and strokes added to an object's prompt. Pure. */

import type { Box, ObjectPrompt, Point, Source } from "./types";

const STROKE_POINTS = 8; // as the library's stroke_to_points: at most so many, so far apart
const STROKE_SPACING = 10;

export const emptyPrompt: ObjectPrompt = { points: [], labels: [] };

export function isEmpty(prompt: ObjectPrompt): boolean {
  return prompt.points.length === 0 && !prompt.box && !prompt.scribble && !prompt.scribble_negative && !prompt.mask;
}

export function addPoint(prompt: ObjectPrompt, point: Point, label: 0 | 1): ObjectPrompt {
  return { ...prompt, points: [...prompt.points, point], labels: [...prompt.labels, label] };
}

export function withBox(prompt: ObjectPrompt, box: Box): ObjectPrompt {
  return { ...prompt, box };
}

/** A prompt holds one stroke of each kind; an earlier one of the same kind goes on as points. */
export function addStroke(prompt: ObjectPrompt, stroke: readonly Point[], label: 0 | 1): ObjectPrompt {
  const key = label === 1 ? "scribble" : "scribble_negative";
  const earlier = prompt[key];
  const points = earlier ? strokePoints(earlier) : [];
  return {
    ...prompt,
    points: [...prompt.points, ...points],
    labels: [...prompt.labels, ...points.map(() => label)],
    [key]: stroke,
  };
}

/** Points evenly spaced along a stroke, never at its very ends. */
export function strokePoints(stroke: readonly Point[]): Point[] {
  const along = [0];
  for (let i = 1; i < stroke.length; i += 1) {
    const [a, b] = [stroke[i - 1] as Point, stroke[i] as Point];
    along.push((along[i - 1] as number) + Math.hypot(b[0] - a[0], b[1] - a[1]));
  }
  const total = along.at(-1) ?? 0;
  const count = Math.min(Math.max(Math.floor(total / STROKE_SPACING), 1), STROKE_POINTS);
  return Array.from({ length: count }, (_, k) => {
    const at = ((k + 0.5) / count) * total;
    const next = Math.max(along.findIndex((distance) => distance >= at), 1);
    const [a, b] = [stroke[next - 1] as Point, stroke[Math.min(next, stroke.length - 1)] as Point];
    const step = (along[Math.min(next, along.length - 1)] as number) - (along[next - 1] as number);
    const part = step > 0 ? (at - (along[next - 1] as number)) / step : 0;
    return [a[0] + (b[0] - a[0]) * part, a[1] + (b[1] - a[1]) * part] as const;
  });
}

/** x0 y0 x1 y1 inside the image from two corners, or null when it is too thin to mean anything. */
export function boxBetween(a: Point, b: Point, [height, width]: readonly [number, number]): Box | null {
  const clamp = (value: number, most: number): number => Math.min(Math.max(value, 0), most);
  const box: Box = [
    clamp(Math.min(a[0], b[0]), width),
    clamp(Math.min(a[1], b[1]), height),
    clamp(Math.max(a[0], b[0]), width),
    clamp(Math.max(a[1], b[1]), height),
  ];
  return box[2] - box[0] >= 1 && box[3] - box[1] >= 1 ? box : null;
}

/** The JSON that the server keeps with an annotation, or null when there is nothing it could keep. */
export function promptJson(prompt: ObjectPrompt | null): Record<string, unknown> | null {
  if (!prompt) return null;
  if (prompt.text) return { text: prompt.text };
  const json: Record<string, unknown> = {};
  if (prompt.points.length > 0) Object.assign(json, { points: prompt.points, labels: prompt.labels });
  for (const key of ["box", "scribble", "scribble_negative", "mask"] as const) {
    if (prompt[key]) json[key] = prompt[key];
  }
  return Object.keys(json).length > 0 ? json : null;
}

export function promptFromJson(json: unknown): ObjectPrompt | null {
  if (!json || typeof json !== "object") return null;
  const given = json as Partial<ObjectPrompt>;
  const points = given.points ?? [];
  return { ...given, points, labels: given.labels ?? points.map(() => 1) };
}

/** How an object with this prompt came to be. */
export function sourceOf(prompt: ObjectPrompt): Source {
  if (prompt.scribble || prompt.scribble_negative) return "scribble";
  return prompt.box ? "box" : "click";
}
