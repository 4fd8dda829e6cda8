/** Which of two decoders answers: the second one only where it says the same as the first, in less time. */

import type { Hints } from "./frame";
import { decode, type Decoded, type Decoder, type ImageFeatures } from "./runtime";

const RUNS = 3; // of which the fastest counts: the first ones compile
const MOST_LOGIT_DIFFERENCE = 0.05; // logits go to +-10 and beyond
const MOST_IOU_DIFFERENCE = 0.01;
const MOST_CELLS_DIFFERENT = 0.001; // of those on the other side of the threshold

export interface Trial {
  readonly decoded: Decoded;
  readonly milliseconds: number;
}

/** A click in the middle of the image: what the decoder says, and how long it takes. Raises what it raises. */
export async function tryDecoder(decoder: Decoder, image: ImageFeatures): Promise<Trial> {
  const [height, width] = image.originalSize;
  const hints: Hints = { points: [[width / 2, height / 2]], labels: [1], box: null };
  let milliseconds = Number.POSITIVE_INFINITY;
  for (let run = 1; ; run += 1) {
    const began = performance.now();
    const decoded = await decode(decoder, image, hints, null);
    milliseconds = Math.min(milliseconds, performance.now() - began);
    if (run === RUNS) return { decoded, milliseconds };
  }
}

export function isSameAndFaster(found: Trial, known: Trial): boolean {
  return isSame(found.decoded, known.decoded) && found.milliseconds < known.milliseconds;
}

/** Whether two decoders' answers to one click differ by no more than rounding does. */
export function isSame(found: Decoded, expected: Decoded): boolean {
  if (found.logits.length !== expected.logits.length || found.ious.length !== expected.ious.length) return false;
  let flipped = 0;
  for (let i = 0; i < expected.logits.length; i += 1) {
    // The negation also holds for numbers that are none.
    if (!(Math.abs(found.logits[i]! - expected.logits[i]!) <= MOST_LOGIT_DIFFERENCE)) return false;
    if (found.logits[i]! > 0 !== expected.logits[i]! > 0) flipped += 1;
  }
  const ious = expected.ious.every((value, i) => Math.abs(found.ious[i]! - value) <= MOST_IOU_DIFFERENCE);
  return ious && flipped <= MOST_CELLS_DIFFERENT * expected.logits.length;
}
