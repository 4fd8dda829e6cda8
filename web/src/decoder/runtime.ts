/** The decoder in onnxruntime-web: a session, the features of an image, one decode. Runs in the worker. */

import type * as Ort from "onnxruntime-web/wasm";
import mjsUrl from "onnxruntime-web/ort-wasm-simd-threaded.mjs?url";
import wasmUrl from "onnxruntime-web/ort-wasm-simd-threaded.wasm?url";
import type { DecoderInfo, Size } from "../forms";
import { readSafetensors } from "../safetensors";
import { inputSize, lowResSize, promptTokens, type Hints } from "./frame";
import type { Runtime } from "./messages";

// More threads than this cost more in waiting for each other than they save in a decoder of this size.
const MOST_THREADS = 8;

type OrtModule = Pick<typeof Ort, "InferenceSession" | "Tensor" | "env">;

export interface Decoder {
  readonly runtime: Runtime;
  readonly info: DecoderInfo;
  readonly ort: OrtModule;
  readonly session: Ort.InferenceSession;
}

export interface ImageFeatures {
  readonly feeds: Readonly<Record<string, Ort.Tensor>>;
  readonly originalSize: Size;
  readonly inputSize: Size;
  readonly lowResSize: Size;
}

/** low_res_logits: (M, h, w) in one array; iou_predictions: (M,). */
export interface Decoded {
  readonly logits: Float32Array;
  readonly ious: Float32Array;
}

export async function startOnWasm(model: ArrayBuffer, info: DecoderInfo): Promise<Decoder> {
  const ort = await import("onnxruntime-web/wasm");
  const threads = self.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency || 1, MOST_THREADS) : 1;
  ort.env.wasm.wasmPaths = { mjs: mjsUrl, wasm: wasmUrl };
  ort.env.wasm.numThreads = threads;
  const session = await ort.InferenceSession.create(new Uint8Array(model), {
    executionProviders: ["wasm"],
    graphOptimizationLevel: "basic", // the higher levels take half a second longer here and gain nothing
  });
  return { runtime: { provider: "wasm", threads }, info, ort, session };
}

/** Raises RangeError for features that are not this decoder's. */
export function readFeatures(decoder: Decoder, file: ArrayBuffer, originalSize: Size): ImageFeatures {
  const { tensors } = readSafetensors(file);
  const feeds: Record<string, Ort.Tensor> = {};
  for (const name of decoder.info.features) {
    const tensor = tensors.get(name);
    if (!tensor) throw new RangeError(`The image's encoding has no ${name}.`);
    feeds[name] = new decoder.ort.Tensor("float32", tensor.data, tensor.shape);
  }
  const input = inputSize(decoder.info.frame, originalSize);
  return { feeds, originalSize, inputSize: input, lowResSize: lowResSize(decoder.info.frame, input) };
}

export async function decode(
  decoder: Decoder,
  image: ImageFeatures,
  hints: Hints,
  maskLogits: Float32Array | null,
): Promise<Decoded> {
  const { ort, info, session } = decoder;
  const tokens = promptTokens(hints, info.frame, image.originalSize);
  const count = tokens.labels.length;
  const feeds: Record<string, Ort.Tensor> = {
    ...image.feeds,
    points: new ort.Tensor("float32", tokens.points, [1, count, 2]),
    labels: new ort.Tensor("int64", tokens.labels, [1, count]),
  };
  if (info.has_mask_input) {
    const [height, width] = image.lowResSize;
    const logits = maskLogits ?? new Float32Array(height * width);
    feeds.mask_logits = new ort.Tensor("float32", logits, [1, 1, height, width]);
    feeds.has_mask = new ort.Tensor("float32", Float32Array.of(maskLogits ? 1 : 0), [1]);
  }
  const outputs = await session.run(feeds);
  const logits = (await outputs.low_res_logits!.getData()) as Float32Array;
  const ious = (await outputs.iou_predictions!.getData()) as Float32Array;
  return { logits, ious };
}
