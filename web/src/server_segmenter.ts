/** Clicks answered by the server. */

import type { Api, LogitsForm, PromptForm, Size } from "./api";
import { candidate } from "./candidates";
import { encodeRle } from "./rle";
import type { Candidate, PagePrompt, Segmenter } from "./segmenter";

export function openServerSegmenter(api: Api, imageId: string, size: Size, reason: string): Segmenter {
  const closed = new AbortController();
  let hover: AbortController | null = null;
  // Of logits that the server sent: they come back to it in this shape.
  const shapes = new WeakMap<Float32Array, Size>();
  const predict: Segmenter["predict"] = (prompt, options = {}) => {
    const signal = options.signal ? AbortSignal.any([closed.signal, options.signal]) : closed.signal;
    return predictOnServer(api, imageId, size, prompt, { multimask: options.multimask ?? null, signal, shapes });
  };
  return {
    mode: "server",
    reason,
    predict,
    async preview(x, y) {
      hover?.abort();
      const own = new AbortController();
      hover = own;
      try {
        const found = await predict({ points: [[x, y]], labels: [1] }, { signal: own.signal });
        return found[0] ?? null;
      } catch (error) {
        if (own.signal.aborted && !closed.signal.aborted) return null;
        throw error;
      }
    },
    close: () => closed.abort(),
  };
}

/** The server's masks for a prompt, the best first. shapes: of logits sent earlier; those of this answer are added. */
export async function predictOnServer(
  api: Api,
  imageId: string,
  size: Size,
  prompt: PagePrompt,
  options: { multimask: boolean | null; signal?: AbortSignal | undefined; shapes?: WeakMap<Float32Array, Size> },
): Promise<Candidate[]> {
  const { multimask, signal, shapes } = options;
  const lowResSize = prompt.lowRes && shapes?.get(prompt.lowRes);
  const answer = await api.predict(imageId, [promptForm(prompt, size, lowResSize)], {
    multimask,
    signal,
    lowResLogits: shapes !== undefined,
  });
  const result = answer.results[0];
  const found = (result?.masks ?? []).map((record, i): Candidate => {
    const form = result?.low_res_logits?.[i];
    const lowRes = form && readLogits(form);
    if (form && lowRes) shapes?.set(lowRes, form.shape);
    return candidate(record.segmentation, {
      iou: record.predicted_iou,
      area: record.area,
      box: record.box,
      ...(lowRes ? { lowRes } : {}),
    });
  });
  return bestFirst(found);
}

/** By predicted IoU, the best first; equal ones stay in the model's order. */
export function bestFirst(candidates: readonly Candidate[]): Candidate[] {
  return [...candidates].sort((a, b) => b.iou - a.iou);
}

/** The prompt as the API takes it. Logits whose shape is not known, as they were not sent by the server, are left out. */
export function promptForm(prompt: PagePrompt, size: Size, lowResSize?: Size): PromptForm {
  return {
    ...(prompt.points?.length ? { points: prompt.points, labels: prompt.labels ?? prompt.points.map(() => 1) } : {}),
    ...(prompt.box ? { box: prompt.box } : {}),
    ...(prompt.scribble?.length ? { scribble: prompt.scribble } : {}),
    ...(prompt.scribble_negative?.length ? { scribble_negative: prompt.scribble_negative } : {}),
    ...(prompt.mask ? { mask: encodeRle(prompt.mask, size) } : {}),
    ...(prompt.lowRes && lowResSize ? { low_res_logits: writeLogits(prompt.lowRes, lowResSize) } : {}),
  };
}

export function readLogits(form: LogitsForm): Float32Array {
  const text = atob(form.float32);
  const bytes = Uint8Array.from(text, (character) => character.charCodeAt(0));
  return new Float32Array(bytes.buffer);
}

export function writeLogits(logits: Float32Array, size: Size): LogitsForm {
  const bytes = new Uint8Array(logits.buffer, logits.byteOffset, logits.byteLength);
  const parts: string[] = [];
  for (let i = 0; i < bytes.length; i += 0x8000) parts.push(String.fromCharCode(...bytes.subarray(i, i + 0x8000)));
  return { shape: [size[0], size[1]], float32: btoa(parts.join("")) };
}
