/** The worker that decodes: one session, the features of the open images, one request after the other. */

import { runsToCounts } from "../rle";
import type { DecodeRequest, Reply, Request, WireCandidate } from "./messages";
import { decode, type Decoder, type ImageFeatures, readFeatures, startOnWasm } from "./runtime";
import { boxAndAreaOfImage, upscaleToRuns } from "./upscale";

interface Scope {
  onmessage: ((event: MessageEvent<{ id: number; request: Request }>) => void) | null;
  postMessage(message: Reply, transfer: Transferable[]): void;
}

const scope = self as unknown as Scope;
const images = new Map<string, ImageFeatures>();
let decoder: Decoder | null = null;
let last: Promise<void> = Promise.resolve();

scope.onmessage = ({ data: { id, request } }) => {
  // A session runs one request at a time.
  last = last.then(async () => {
    try {
      const { value, transfer } = await answer(request);
      scope.postMessage({ id, value }, transfer);
    } catch (error) {
      scope.postMessage({ id, error: error instanceof Error ? error.message : String(error) }, []);
    }
  });
};

async function answer(request: Request): Promise<{ value: Extract<Reply, { value: unknown }>["value"]; transfer: Transferable[] }> {
  if (request.kind === "start") {
    decoder = await startOnWasm(request.model, request.info);
    return { value: decoder.runtime, transfer: [] };
  }
  if (request.kind === "forget") {
    images.delete(request.image);
    return { value: null, transfer: [] };
  }
  if (!decoder) throw new Error("The decoder has not been started.");
  if (request.kind === "keep") {
    images.set(request.image, readFeatures(decoder, request.features, request.originalSize));
    return { value: null, transfer: [] };
  }
  const image = images.get(request.image);
  if (!image) throw new Error("The image's features are no longer kept.");
  const value = await candidates(decoder, image, request.request);
  return { value, transfer: value.map(({ lowRes }) => lowRes.buffer as ArrayBuffer) };
}

/** The chosen masks, the best first. */
async function candidates(decoder: Decoder, image: ImageFeatures, request: DecodeRequest): Promise<WireCandidate[]> {
  const { logits, ious } = await decode(decoder, image, request.hints, request.maskLogits);
  const cells = image.lowResSize[0] * image.lowResSize[1];
  const order = [...request.chosen].sort((a, b) => ious[b]! - ious[a]!);
  return (request.bestOnly ? order.slice(0, 1) : order).map((index) => {
    const lowRes = logits.slice(index * cells, (index + 1) * cells);
    const runs = upscaleToRuns(lowRes, image.lowResSize, decoder.info.frame, image.inputSize, request.outputSize);
    const rle = { size: request.outputSize, counts: runsToCounts(runs.lengths) };
    return { rle, ...boxAndAreaOfImage(runs, image.originalSize), iou: ious[index]!, lowRes };
  });
}
