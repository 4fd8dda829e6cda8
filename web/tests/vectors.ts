/** The files of make_vectors.py, read. */

import { readFileSync } from "node:fs";
import type { FrameForm, PromptForm, Size } from "../src/forms";
import { widenHalf } from "../src/safetensors";

export interface Coco {
  readonly name: string;
  readonly size: Size;
  readonly counts: string;
  readonly area: number;
  readonly box: [number, number, number, number];
}

export interface RleCase extends Coco {
  readonly mask: string;
}

export interface UpscaleCase extends Coco {
  readonly frame: FrameForm;
  readonly low_res_size: Size;
  readonly low_res_logits: string;
  readonly input_size: Size;
  readonly close: number;
}

export interface FrameCase {
  readonly name: string;
  readonly frame: FrameForm;
  readonly original_size: Size;
  readonly input_size: Size;
  readonly low_res_size: Size;
  readonly max_points: number | null;
  readonly prompt: PromptForm;
  readonly points: [number, number][];
  readonly labels: number[];
}

export interface MaskPromptCase extends Coco {
  readonly frame: FrameForm;
  readonly logits: number[][];
}

export interface SafetensorsCase {
  readonly file: string;
  readonly half: string[];
  readonly single: number[];
}

export function vectors<Form>(name: string): Form {
  return JSON.parse(readFileSync(new URL(`vectors/${name}.json`, import.meta.url), "utf-8")) as Form;
}

export function bytesOf(base64: string): ArrayBuffer {
  return new Uint8Array(Buffer.from(base64, "base64")).buffer;
}

export function halves(base64: string): Float32Array {
  return widenHalf(new Uint16Array(bytesOf(base64)));
}

/** A mask of bits, row by row, as bytes. */
export function unpack(base64: string, [height, width]: Size): Uint8Array {
  const bits = new Uint8Array(bytesOf(base64));
  return Uint8Array.from({ length: height * width }, (_, i) => (bits[i >> 3]! >> (7 - (i & 7))) & 1);
}
