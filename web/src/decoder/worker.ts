/** The worker that decodes: the sessions, the features of the open images, one request after the other. */

import { runsToCounts } from "../rle";
import { isSameAndFaster, tryDecoder } from "./choice";
import type { Answers, DecodeRequest, Reply, Request, WireCandidate } from "./messages";
import {
  decode,
  type Decoded,
  type Decoder,
  type ImageFeatures,
  readFeatures,
  startOnWasm,
  startOnWebGpu,
} from "./runtime";
import { boxAndAreaOfImage, upscaleToRuns } from "./upscale";

const GPU_PATIENCE_MS = 2000;

interface Scope {
  onmessage: ((event: MessageEvent<{ id: number; request: Request }>) => void) | null;
  postMessage(message: Reply, transfer: Transferable[]): void;
}

const scope = self as unknown as Scope;
const images = new Map<string, ImageFeatures>();
/** wasm answers until the GPU has shown that it says the same, and when that fails. */
const decoders: { wasm: Decoder | null; gpu: Decoder | null } = { wasm: null, gpu: null };
let last: Promise<void> = Promise.resolve();
let waiting = 0;
let recent: { readonly key: string; readonly decoded: Decoded } | null = null;

scope.onmessage = ({ data: { id, request } }) => {
  waiting += 1;
  inTurn(async () => {
    waiting -= 1;
    try {
      const { value, transfer } = await answer(request);
      scope.postMessage({ id, value }, transfer);
    } catch (error) {
      scope.postMessage({ id, error: error instanceof Error ? error.message : String(error) }, []);
    }
  });
};

/** A session runs one request at a time. */
function inTurn(work: () => Promise<void>): void {
  last = last.then(work).catch(() => undefined);
}

async function answer(request: Request): Promise<{ value: Answers[Request["kind"]]; transfer: Transferable[] }> {
  if (request.kind === "start") {
    decoders.wasm = await startOnWasm(request.model, request.info);
    return { value: decoders.wasm.runtime, transfer: [] };
  }
  if (request.kind === "forget") {
    images.delete(request.image);
    recent = null;
    return { value: null, transfer: [] };
  }
  const { wasm } = decoders;
  if (!wasm) throw new Error("The decoder has not been started.");
  if (request.kind === "keep") {
    images.set(request.image, readFeatures(wasm.info, request.features, request.originalSize));
    return { value: null, transfer: [] };
  }
  const image = images.get(request.image);
  if (!image) throw new Error("The image's features are no longer kept.");
  if (request.kind === "prepare") {
    prepare(wasm, image, request.model);
    return { value: null, transfer: [] };
  }
  const value = await candidates(wasm, image, request);
  return { value, transfer: value.map(({ lowRes }) => lowRes.buffer as ArrayBuffer) };
}

/**
 * What makes later clicks faster, after the requests that wait: browsers compile WebAssembly better while it runs, and
 * there may be a GPU. That one is tried beside the requests, as it may be slow or never answer.
 */
function prepare(wasm: Decoder, image: ImageFeatures, model: ArrayBuffer): void {
  inTurn(async () => {
    await nextTask(); // else what arrived meanwhile is not counted
    if (!waiting) await tryDecoder(wasm, image);
  });
  void prepareGpu(wasm, image, model).catch(() => undefined); // a GPU is no necessity
}

async function prepareGpu(wasm: Decoder, image: ImageFeatures, model: ArrayBuffer): Promise<void> {
  const gpu = await startOnWebGpu(model, wasm.info);
  if (!gpu) return;
  const found = await tryDecoder(gpu, image);
  inTurn(async () => {
    if (isSameAndFaster(found, await tryDecoder(wasm, image))) decoders.gpu = gpu;
    else await gpu.session.release();
  });
}

function nextTask(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, 0));
}

async function decodeAnyhow(wasm: Decoder, image: ImageFeatures, request: DecodeRequest): Promise<Decoded> {
  if (decoders.gpu) {
    try {
      return await withinTime(decode(decoders.gpu, image, request.hints, request.maskLogits));
    } catch {
      decoders.gpu = null; // lost: another program's crash is enough
    }
  }
  return decode(wasm, image, request.hints, request.maskLogits);
}

function withinTime<Value>(work: Promise<Value>): Promise<Value> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error("The GPU does not answer.")), GPU_PATIENCE_MS);
    work.then(resolve, reject).finally(() => clearTimeout(timer));
  });
}

/** A click mostly comes where the pointer rested, so that its preview was just decoded. */
async function decodeOnce(wasm: Decoder, image: ImageFeatures, request: DecodeRequest, name: string): Promise<Decoded> {
  if (request.maskLogits) return decodeAnyhow(wasm, image, request);
  const key = JSON.stringify([name, request.hints]);
  if (recent?.key !== key) recent = { key, decoded: await decodeAnyhow(wasm, image, request) };
  return recent.decoded;
}

/** The chosen masks, the best first. */
async function candidates(
  wasm: Decoder,
  image: ImageFeatures,
  { image: name, request }: Extract<Request, { kind: "decode" }>,
): Promise<WireCandidate[]> {
  const { logits, ious } = await decodeOnce(wasm, image, request, name);
  const cells = image.lowResSize[0] * image.lowResSize[1];
  const order = [...request.chosen].sort((a, b) => ious[b]! - ious[a]!);
  return (request.bestOnly ? order.slice(0, 1) : order).map((index) => {
    const lowRes = logits.slice(index * cells, (index + 1) * cells);
    const runs = upscaleToRuns(lowRes, image.lowResSize, wasm.info.frame, image.inputSize, request.outputSize);
    const rle = { size: request.outputSize, counts: runsToCounts(runs.lengths) };
    return { rle, ...boxAndAreaOfImage(runs, image.originalSize), iou: ious[index]!, lowRes };
  });
}
