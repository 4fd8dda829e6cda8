/** The decoder in onnxruntime-web: a session, the features of an image, one decode. Runs in the worker. */

import type * as Ort from "onnxruntime-web/wasm";
import type { DecoderInfo, Size } from "../forms";
import { readSafetensors, type Tensor } from "../safetensors";
import { type Hints, inputSize, lowResSize, promptTokens } from "./frame";
import type { Runtime } from "./messages";

// More threads than this cost more in waiting for each other than they save in a decoder of this size.
const MOST_THREADS = 8;

export interface Decoder {
  readonly runtime: Runtime;
  readonly info: DecoderInfo;
  readonly ort: Pick<typeof Ort, "Tensor">;
  readonly session: Ort.InferenceSession;
}

/** features: by name, in the order of the decoder's info. */
export interface ImageFeatures {
  readonly features: readonly (readonly [name: string, tensor: Tensor])[];
  readonly originalSize: Size;
  readonly inputSize: Size;
  readonly lowResSize: Size;
}

/** low_res_logits: (M, h, w) in one array; iou_predictions: (M,). */
export interface Decoded {
  readonly logits: Float32Array;
  readonly ious: Float32Array;
}

/** model: an ONNX file, of which a copy is made. */
export async function startOnWasm(model: ArrayBuffer, info: DecoderInfo): Promise<Decoder> {
  const [ort, { default: mjs }, { default: wasm }] = await Promise.all([
    import("onnxruntime-web/wasm"),
    import("onnxruntime-web/ort-wasm-simd-threaded.mjs?url"),
    import("onnxruntime-web/ort-wasm-simd-threaded.wasm?url"),
  ]);
  const threads = self.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency || 1, MOST_THREADS) : 1;
  ort.env.wasm.wasmPaths = { mjs, wasm };
  ort.env.wasm.numThreads = threads;
  const session = await ort.InferenceSession.create(new Uint8Array(model), {
    executionProviders: ["wasm"],
    graphOptimizationLevel: "basic", // the higher levels take half a second longer here and gain nothing
  });
  return { runtime: { provider: "wasm", threads }, info, ort, session };
}

/** The same on the GPU; null where the browser offers none, or only one that the processor imitates. */
export async function startOnWebGpu(model: ArrayBuffer, info: DecoderInfo): Promise<Decoder | null> {
  const { gpu } = navigator as unknown as { gpu?: { requestAdapter(): Promise<Adapter | null> } };
  // Of ONNX Runtime's builds for GPUs, the small one needs WebAssembly that can wait for promises.
  if (!gpu || !("Suspending" in WebAssembly)) return null;
  const adapter = await gpu.requestAdapter();
  if (!adapter || adapter.isFallbackAdapter || adapter.info?.isFallbackAdapter) return null;
  const [ort, { default: mjs }, { default: wasm }] = await Promise.all([
    import("onnxruntime-web/jspi"),
    import("onnxruntime-web/ort-wasm-simd-threaded.jspi.mjs?url"),
    import("onnxruntime-web/ort-wasm-simd-threaded.jspi.wasm?url"),
  ]);
  ort.env.wasm.wasmPaths = { mjs, wasm };
  ort.env.wasm.numThreads = 1;
  const session = await ort.InferenceSession.create(new Uint8Array(model), {
    executionProviders: ["webgpu"],
    logSeverityLevel: 3, // errors; that shapes are computed by the processor is as it should be
  });
  return { runtime: { provider: "webgpu", threads: 1 }, info, ort, session };
}

interface Adapter {
  readonly isFallbackAdapter?: boolean;
  readonly info?: { readonly isFallbackAdapter?: boolean };
}

/** Raises RangeError for features that are not this decoder's. */
export function readFeatures(info: DecoderInfo, file: ArrayBuffer, originalSize: Size): ImageFeatures {
  const { tensors } = readSafetensors(file);
  const features = info.features.map((name) => {
    const tensor = tensors.get(name);
    if (!tensor) throw new RangeError(`The image's encoding has no ${name}.`);
    return [name, tensor] as const;
  });
  const input = inputSize(info.frame, originalSize);
  return { features, originalSize, inputSize: input, lowResSize: lowResSize(info.frame, input) };
}

/** maskLogits: (h, w), a mask prompt. */
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
    points: new ort.Tensor("float32", tokens.points, [1, count, 2]),
    labels: new ort.Tensor("int64", tokens.labels, [1, count]),
  };
  for (const [name, { data, shape }] of image.features) feeds[name] = new ort.Tensor("float32", data, shape);
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
