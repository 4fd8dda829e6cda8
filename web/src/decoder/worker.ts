/** The worker that decodes: one session, the features of the open images, one request after the other. */

import { runsToCounts } from "../rle";
import type { DecodeRequest, Reply, Request, WireCandidate } from "./messages";
import type { Hints } from "./frame";
import { decode, type Decoded, type Decoder, type ImageFeatures, readFeatures, startOnWasm } from "./runtime";
import { boxAndAreaOfImage, upscaleToRuns } from "./upscale";

interface Scope {
  onmessage: ((event: MessageEvent<{ id: number; request: Request }>) => void) | null;
  postMessage(message: Reply, transfer: Transferable[]): void;
}

const WARM_UP_RUNS = 3;

const scope = self as unknown as Scope;
const images = new Map<string, ImageFeatures>();
let decoder: Decoder | null = null;
let last: Promise<void> = Promise.resolve();
let waiting = 0;
let recent: { readonly key: string; readonly decoded: Decoded } | null = null;

scope.onmessage = ({ data: { id, request } }) => {
  // A session runs one request at a time.
  waiting += 1;
  last = last.then(async () => {
    waiting -= 1;
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
    recent = null;
    return { value: null, transfer: [] };
  }
  if (!decoder) throw new Error("The decoder has not been started.");
  if (request.kind === "keep") {
    const first = images.size === 0;
    const kept = readFeatures(decoder, request.features, request.originalSize);
    images.set(request.image, kept);
    if (first) warmUp(decoder, kept);
    return { value: null, transfer: [] };
  }
  const image = images.get(request.image);
  if (!image) throw new Error("The image's features are no longer kept.");
  const value = await candidates(decoder, image, request);
  return { value, transfer: value.map(({ lowRes }) => lowRes.buffer as ArrayBuffer) };
}

/** Browsers compile WebAssembly better while it runs: the first clicks would be slow. Gives way to real requests. */
function warmUp(decoder: Decoder, image: ImageFeatures): void {
  const hints: Hints = { points: [[image.originalSize[1] / 2, image.originalSize[0] / 2]], labels: [1], box: null };
  for (let i = 0; i < WARM_UP_RUNS; i += 1) {
    last = last.then(async () => {
      if (waiting) return;
      await decode(decoder, image, hints, null);
      await nextTask(); // else what arrived meanwhile is not counted
    });
  }
}

function nextTask(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, 0));
}

/** A click mostly comes where the pointer rested and its preview was decoded. */
async function decodeOnce(decoder: Decoder, image: ImageFeatures, request: DecodeRequest, name: string): Promise<Decoded> {
  if (request.maskLogits) return decode(decoder, image, request.hints, request.maskLogits);
  const key = JSON.stringify([name, request.hints]);
  if (recent?.key !== key) recent = { key, decoded: await decode(decoder, image, request.hints, null) };
  return recent.decoded;
}

/** The chosen masks, the best first. */
async function candidates(
  decoder: Decoder,
  image: ImageFeatures,
  { image: name, request }: Extract<Request, { kind: "decode" }>,
): Promise<WireCandidate[]> {
  const { logits, ious } = await decodeOnce(decoder, image, request, name);
  const cells = image.lowResSize[0] * image.lowResSize[1];
  const order = [...request.chosen].sort((a, b) => ious[b]! - ious[a]!);
  return (request.bestOnly ? order.slice(0, 1) : order).map((index) => {
    const lowRes = logits.slice(index * cells, (index + 1) * cells);
    const runs = upscaleToRuns(lowRes, image.lowResSize, decoder.info.frame, image.inputSize, request.outputSize);
    const rle = { size: request.outputSize, counts: runsToCounts(runs.lengths) };
    return { rle, ...boxAndAreaOfImage(runs, image.originalSize), iou: ious[index]!, lowRes };
  });
}
