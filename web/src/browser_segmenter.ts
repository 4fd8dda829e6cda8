/** Clicks answered in this browser; what its decoder does not take is passed on to the server. */

import type { Api, Embedding, Size } from "./api";
import { candidate, latestOnly } from "./candidates";
import type { DecoderClient } from "./decoder/client";
import { chosenMasks, type Hints, inputSize, lowResSize, resolveHints } from "./decoder/frame";
import { maskToLogits } from "./decoder/mask_prompt";
import type { WireCandidate } from "./decoder/messages";
import { maskBox } from "./masks";
import type { Candidate, PagePrompt, Segmenter } from "./segmenter";
import { predictOnServer } from "./server_segmenter";

const PREVIEW_SIDE = 640; // pixels: finer than what the model sees is only slower

/** Raises Error when the features are not this decoder's. */
export async function openBrowserSegmenter(
  api: Api,
  imageId: string,
  embedding: Embedding,
  decoder: DecoderClient,
): Promise<Segmenter> {
  const size = embedding.originalSize;
  const key = crypto.randomUUID(); // an image may be opened twice
  await decoder.keep(key, embedding.data, size);
  const closed = new AbortController();
  const hover = latestOnly<Candidate>();

  const predict: Segmenter["predict"] = async (prompt, options = {}) => {
    const signal = options.signal ? AbortSignal.any([closed.signal, options.signal]) : closed.signal;
    signal.throwIfAborted();
    const multimask = options.multimask ?? null;
    const query = toQuery(prompt, size, decoder, multimask);
    if (!query) return predictOnServer(api, imageId, size, prompt, { multimask, signal });
    const found = await decoder.decode(key, { ...query, outputSize: size });
    signal.throwIfAborted();
    return found.map(toCandidate);
  };
  return {
    mode: "browser",
    predict,
    preview: (x, y) =>
      hover(async () => {
        closed.signal.throwIfAborted();
        const hints: Hints = { points: [[x, y]], labels: [1], box: null };
        const chosen = chosenMasks(decoder.info, hints, false, null);
        const request = { hints, maskLogits: null, chosen, outputSize: previewSize(size), bestOnly: true };
        const found = await decoder.decode(key, request);
        closed.signal.throwIfAborted();
        return found[0] ? toCandidate(found[0]) : null;
      }),
    close() {
      closed.abort();
      decoder.forget(key);
    },
  };
}

interface Query {
  readonly hints: Hints;
  readonly maskLogits: Float32Array | null;
  readonly chosen: readonly number[];
}

/** What the decoder is asked; null for what only the server answers, or refuses with a sentence. */
function toQuery(prompt: PagePrompt, size: Size, decoder: DecoderClient, multimask: boolean | null): Query | null {
  const { info } = decoder;
  let hints = resolveHints(prompt, info.max_points);
  const hasMask = prompt.mask !== undefined || prompt.lowRes !== undefined;
  if (hasMask && !info.has_mask_input) return null;
  if (prompt.mask && !hints.points.length && !hints.box) hints = { ...hints, box: boxAsHint(prompt.mask, size) };
  if (!isAcceptable(prompt, hints, size, info.max_points)) return null;
  const maskLogits = prompt.mask ? maskToLogits(prompt.mask, size, info.frame) : (prompt.lowRes?.slice() ?? null);
  const [rows, columns] = lowResSize(info.frame, inputSize(info.frame, size));
  if (maskLogits && maskLogits.length !== rows * columns) return null;
  return { hints, maskLogits, chosen: chosenMasks(info, hints, hasMask, multimask) };
}

function boxAsHint(mask: Uint8Array, size: Size): Hints["box"] {
  const box = maskBox(mask, size);
  return box[2] > box[0] ? box : null;
}

/** Whether the server would take it: it says best what is wrong. */
function isAcceptable(prompt: PagePrompt, hints: Hints, [height, width]: Size, maxPoints: number | null): boolean {
  const all = [...(prompt.points ?? []), ...(prompt.scribble ?? []), ...(prompt.scribble_negative ?? [])];
  const inside = all.every(([x, y]) => x >= 0 && y >= 0 && x <= width && y <= height);
  const labelled = (prompt.labels ?? []).length === (prompt.points ?? []).length || !prompt.labels;
  const tokens = hints.points.length + (hints.box ? 2 : 0);
  const boxed = !hints.box || isBox(hints.box, width, height);
  const something = tokens > 0 || prompt.lowRes !== undefined;
  return inside && labelled && boxed && something && tokens <= (maxPoints ?? Number.POSITIVE_INFINITY);
}

function isBox([x0, y0, x1, y1]: NonNullable<Hints["box"]>, width: number, height: number): boolean {
  return x1 > x0 && y1 > y0 && x0 < width && y0 < height && x1 > 0 && y1 > 0;
}

function toCandidate(found: WireCandidate): Candidate {
  return candidate(found.rle, { iou: found.iou, area: found.area, box: found.box, lowRes: found.lowRes });
}

function previewSize([height, width]: Size): Size {
  const scale = Math.min(1, PREVIEW_SIDE / Math.max(height, width));
  return [Math.max(1, Math.round(height * scale)), Math.max(1, Math.round(width * scale))];
}
