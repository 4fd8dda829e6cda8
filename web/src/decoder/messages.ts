/** What the page and the decoder's worker say to each other. Buffers change hands; nothing is copied. */

import type { Box, DecoderInfo, Rle, Size } from "../forms";
import type { Hints } from "./frame";

/** rle: at the size that was asked for; area and box in pixels of the image. */
export interface WireCandidate {
  readonly rle: Rle;
  readonly iou: number;
  readonly area: number;
  readonly box: Box;
  readonly lowRes: Float32Array;
}

/** maskLogits: (h, w), a mask prompt. chosen: which of the model's masks. outputSize: of the masks. */
export interface DecodeRequest {
  readonly hints: Hints;
  readonly maskLogits: Float32Array | null;
  readonly chosen: readonly number[];
  readonly outputSize: Size;
  /** Only the one with the highest predicted IoU. */
  readonly bestOnly?: boolean;
}

export type Request =
  | { readonly kind: "start"; readonly model: ArrayBuffer; readonly info: DecoderInfo }
  | { readonly kind: "keep"; readonly image: string; readonly features: ArrayBuffer; readonly originalSize: Size }
  /** Work in advance for what comes; once, with a kept image. model: as for start. */
  | { readonly kind: "prepare"; readonly image: string; readonly model: ArrayBuffer }
  | { readonly kind: "decode"; readonly image: string; readonly request: DecodeRequest }
  | { readonly kind: "forget"; readonly image: string };

export interface Runtime {
  readonly provider: "wasm" | "webgpu";
  readonly threads: number;
}

/** What each kind of request is answered with. */
export interface Answers {
  start: Runtime;
  keep: null;
  prepare: null;
  decode: WireCandidate[];
  forget: null;
}

export type Reply =
  | { readonly id: number; readonly value: Answers[keyof Answers] }
  | { readonly id: number; readonly error: string };
