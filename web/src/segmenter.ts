/** Clicks on one image -> masks: by the decoder in this browser when there is one, else by the server. */

import { type Api, ApiError, type ImageState, type Rle } from "./api";
import { openBrowserSegmenter } from "./browser_segmenter";
import { type DecoderClient, sharedDecoder } from "./decoder/client";
import { openServerSegmenter } from "./server_segmenter";

/**
 * One mask for a prompt. rle, mask: the same, as run lengths and as height * width values of 0 and 1, row by row; the
 * latter is made when it is first read. They have the size of the image, but a preview's may be smaller and then stand
 * for the whole image. area and box (right and bottom exclusive) always are in pixels of the image. iou: as the model
 * predicts it. lowRes: logits that a later prompt on this image may carry, to refine the mask.
 */
export interface Candidate {
  readonly rle: Rle;
  readonly mask: Uint8Array;
  readonly width: number;
  readonly height: number;
  readonly iou: number;
  readonly area: number;
  readonly box: [number, number, number, number];
  readonly lowRes?: Float32Array;
}

/** In pixels of the image. At most one of mask (height * width values) and lowRes (of a candidate for this image). */
export interface PagePrompt {
  points?: [number, number][];
  labels?: number[];
  box?: [number, number, number, number];
  scribble?: [number, number][];
  scribble_negative?: [number, number][];
  mask?: Uint8Array;
  lowRes?: Float32Array;
}

export interface Segmenter {
  /** Where clicks are answered, and why not in the browser. */
  readonly mode: "browser" | "server";
  readonly reason?: string;
  /** One mask or the several that the model proposes, the best (highest predicted IoU) first. */
  predict(prompt: PagePrompt, options?: { multimask?: boolean | null; signal?: AbortSignal }): Promise<Candidate[]>;
  /** The mask under the pointer; null when a later call overtook this one. */
  preview(x: number, y: number): Promise<Candidate | null>;
  /** Frees what is kept of the image. Calls still under way end with an AbortError. */
  close(): void;
}

/** imageId: the engine's. onProgress: what is happening, and 0 to 1. Raises ApiError, Error for a failed image. */
export async function openSegmenter(
  api: Api,
  imageId: string,
  onProgress: (what: string, done: number) => void,
): Promise<Segmenter> {
  onProgress("Encoding the image", 0);
  // The decoder starts while the server encodes.
  const starting = sharedDecoder(api);
  const state = await waitUntilReady(api, imageId, onProgress);
  onProgress("Starting the decoder", 0.7);
  const decoder = await starting;
  const open = "reason" in decoder ? decoder.reason : await openInBrowser(api, state, decoder, onProgress);
  onProgress("Ready", 1);
  return typeof open === "string" ? openServerSegmenter(api, imageId, state.size, open) : open;
}

/** A segmenter, or why there is none. */
async function openInBrowser(
  api: Api,
  state: ImageState,
  decoder: DecoderClient,
  onProgress: (what: string, done: number) => void,
): Promise<Segmenter | string> {
  onProgress("Loading the image's features", 0.8);
  try {
    const embedding = await api.embedding(state.id);
    return await openBrowserSegmenter(api, state.id, embedding, decoder);
  } catch (error) {
    // Gone, or a server that is gone: clicks would not be answered there either.
    if (error instanceof ApiError && [0, 401, 403, 404].includes(error.status)) throw error;
    return error instanceof Error ? error.message : String(error);
  }
}

async function waitUntilReady(
  api: Api,
  imageId: string,
  onProgress: (what: string, done: number) => void,
): Promise<ImageState> {
  let wait = 1;
  for (;;) {
    const state = await api.imageState(imageId, { wait });
    if (state.state === "ready") return state;
    if (state.state === "failed") throw new Error(state.error ?? "The image could not be encoded.");
    const ahead = state.queue_position;
    onProgress(ahead ? `Waiting for ${ahead} other image${ahead > 1 ? "s" : ""}` : "Encoding the image", 0.1);
    wait = 5;
  }
}
