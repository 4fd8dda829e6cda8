/** Between image pixels and the decoder's input frame: the rounding rules of anysam.preprocess and anysam.prompts. */

import type { Box, DecoderInfo, FrameForm, Size } from "../forms";

export const SCRIBBLE_POINTS = 8;
export const SCRIBBLE_SPACING = 10;

const PADDING_LABEL = -1;
const TOP_LEFT_LABEL = 2;
const BOTTOM_RIGHT_LABEL = 3;

export type Point = readonly [x: number, y: number];

/** Points, labels of 1 and 0, and a box, in pixels of the original image. */
export interface Hints {
  readonly points: readonly Point[];
  readonly labels: readonly number[];
  readonly box: Readonly<Box> | null;
}

/** points: x y in turn, in the input frame; labels: one each. */
export interface Tokens {
  readonly points: Float32Array;
  readonly labels: BigInt64Array;
}

/** A prompt without its mask: strokes become points, the clicks first. maxPoints: that the model takes. */
export function resolveHints(
  prompt: {
    readonly points?: readonly Point[];
    readonly labels?: readonly number[];
    readonly box?: Readonly<Box>;
    readonly scribble?: readonly Point[];
    readonly scribble_negative?: readonly Point[];
  },
  maxPoints: number | null,
): Hints {
  const points: Point[] = [...(prompt.points ?? [])];
  const labels: number[] = [...(prompt.labels ?? points.map(() => 1))];
  const strokes = [
    { stroke: prompt.scribble ?? [], label: 1 },
    { stroke: prompt.scribble_negative ?? [], label: 0 },
  ].filter(({ stroke }) => stroke.length);
  const most = pointsForStrokes(strokes.length, points.length, prompt.box !== undefined, maxPoints);
  for (const { stroke, label } of strokes) {
    const own = strokeToPoints(stroke, most);
    points.push(...own);
    labels.push(...own.map(() => label));
  }
  return { points, labels, box: prompt.box ?? null };
}

/** [height, width] of the resized, unpadded image. */
export function inputSize(frame: FrameForm, originalSize: Size): Size {
  if (!frame.keep_aspect) return [frame.long_side, frame.long_side];
  const scale = frame.long_side / Math.max(...originalSize);
  const resized = (side: number): number => Math.max(1, Math.floor(side * scale + 0.5));
  return [resized(originalSize[0]), resized(originalSize[1])];
}

/** [height, width] of the padded input. */
export function paddedSize(frame: FrameForm, input: Size): Size {
  if (frame.pad_to !== null) return [frame.pad_to, frame.pad_to];
  const padded = (side: number): number => Math.ceil(side / frame.pad_multiple) * frame.pad_multiple;
  return [padded(input[0]), padded(input[1])];
}

/** [h, w] of the low-resolution logits. */
export function lowResSize(frame: FrameForm, input: Size): Size {
  const [height, width] = paddedSize(frame, input);
  return [Math.floor(height / frame.low_res_stride), Math.floor(width / frame.low_res_stride)];
}

/** The points; a padding point if there is no box; the box's corners. */
export function promptTokens(hints: Hints, frame: FrameForm, originalSize: Size): Tokens {
  const points: Point[] = [...hints.points];
  const labels = [...hints.labels];
  if (hints.box) {
    points.push([hints.box[0], hints.box[1]], [hints.box[2], hints.box[3]]);
    labels.push(TOP_LEFT_LABEL, BOTTOM_RIGHT_LABEL);
  } else {
    points.push([0, 0]);
    labels.push(PADDING_LABEL);
  }
  const scaled = new Float32Array(points.length * 2);
  const input = inputSize(frame, originalSize);
  const uniform = Math.fround(frame.long_side / Math.max(...originalSize));
  const [scaleX, scaleY] = [input[1] / originalSize[1], input[0] / originalSize[0]];
  points.forEach(([x, y], i) => {
    // Storing rounds to float32: once after a float64 product, or that of two float32, as in Python.
    scaled[2 * i] = frame.uniform_prompt_scale ? Math.fround(x) * uniform : x * scaleX;
    scaled[2 * i + 1] = frame.uniform_prompt_scale ? Math.fround(y) * uniform : y * scaleY;
  });
  return { points: scaled, labels: BigInt64Array.from(labels, BigInt) };
}

/** Points evenly spaced along a stroke, 1 to `most` of them: the middles of equal lengths, never its very ends. */
export function strokeToPoints(stroke: readonly Point[], most: number = SCRIBBLE_POINTS): Point[] {
  if (!stroke.length) return [];
  const along = [0];
  for (let i = 1; i < stroke.length; i += 1) {
    const step = Math.hypot(stroke[i]![0] - stroke[i - 1]![0], stroke[i]![1] - stroke[i - 1]![1]);
    along.push(along[i - 1]! + step);
  }
  const length = along[along.length - 1]!;
  const count = Math.min(Math.max(Math.floor(length / SCRIBBLE_SPACING), 1), most);
  return Array.from({ length: count }, (_, i) => pointAt(stroke, along, ((i + 0.5) / count) * length));
}

function pointAt(stroke: readonly Point[], along: readonly number[], at: number): Point {
  const next = along.findIndex((length) => length > at);
  if (next < 0) return stroke[stroke.length - 1]!;
  if (next === 0) return stroke[0]!;
  const share = (at - along[next - 1]!) / (along[next]! - along[next - 1]!);
  const [first, second] = [stroke[next - 1]!, stroke[next]!];
  return [first[0] + (second[0] - first[0]) * share, first[1] + (second[1] - first[1]) * share];
}

/** How many points may stand for each of so many strokes. */
export function pointsForStrokes(
  strokes: number,
  points: number,
  hasBox: boolean,
  maxPoints: number | null,
): number {
  if (maxPoints === null || !strokes) return SCRIBBLE_POINTS;
  const room = maxPoints - points - (hasBox ? 2 : 0);
  return Math.min(SCRIBBLE_POINTS, Math.max(1, Math.floor(room / strokes)));
}

/** Which of the decoder's masks a prompt is answered with. multimask: null for what the model's authors do. */
export function chosenMasks(info: DecoderInfo, hints: Hints, hasMask: boolean, multimask: boolean | null): readonly number[] {
  const rules = {
    single_point: hints.points.length === 1 && !hints.box && !hasMask,
    always: true,
    never: false,
  };
  return (multimask ?? rules[info.multimask_default]) ? info.several : info.single;
}
