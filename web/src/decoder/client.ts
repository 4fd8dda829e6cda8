/** The decoder's worker, as the page sees it: promises for its answers. */

import { type Api, ApiError } from "../api";
import type { DecoderInfo, Size } from "../forms";
import type { Answers, DecodeRequest, Reply, Request, Runtime, WireCandidate } from "./messages";

const FORMAT = "anysam-decoder-1";

export interface DecoderClient {
  readonly info: DecoderInfo;
  readonly runtime: Runtime;
  /** features: a safetensors file; its buffer is handed over. */
  keep(image: string, features: ArrayBuffer, originalSize: Size): Promise<void>;
  decode(image: string, request: DecodeRequest): Promise<WireCandidate[]>;
  forget(image: string): void;
}

/** Why clicks cannot be answered in this browser. */
export interface NoDecoder {
  readonly reason: string;
}

// One session for the page: it holds some 100 MB, and images share it.
const started = new WeakMap<Api, Promise<DecoderClient | NoDecoder>>();

/** The page's decoder, started on the first call. What may pass (a server that is busy or gone) is tried anew later. */
export function sharedDecoder(api: Api): Promise<DecoderClient | NoDecoder> {
  const known = started.get(api);
  if (known) return known;
  const starting = fetchAndStart(api).catch((error: unknown) => {
    if (error instanceof ApiError && error.status !== 404) started.delete(api);
    return { reason: reasonOf(error) };
  });
  started.set(api, starting);
  return starting;
}

async function fetchAndStart(api: Api): Promise<DecoderClient> {
  const info = await api.decoderInfo();
  if (info.format !== FORMAT) throw new Error(`The server's decoder has the format ${info.format}, not ${FORMAT}.`);
  return startDecoder(await api.decoder(), info);
}

function reasonOf(error: unknown): string {
  if (error instanceof ApiError && error.status === 404) return "The server's model has no decoder for browsers.";
  return error instanceof Error ? error.message : String(error);
}

/** Raises Error when the browser cannot run the decoder. model: an ONNX file. */
export async function startDecoder(model: ArrayBuffer, info: DecoderInfo): Promise<DecoderClient> {
  const worker = new Worker(new URL("./worker.ts", import.meta.url), { type: "module" });
  const ask = connect(worker);
  let prepared = false;
  try {
    const runtime = await ask({ kind: "start", model, info }, []);
    return {
      info,
      runtime,
      keep: async (image, features, originalSize) => {
        await ask({ kind: "keep", image, features, originalSize }, [features]);
        if (prepared) return;
        prepared = true;
        void ask({ kind: "prepare", image, model }, [model]).catch(() => undefined);
      },
      decode: (image, request) => ask({ kind: "decode", image, request }, []),
      forget: (image) => void ask({ kind: "forget", image }, []).catch(() => undefined),
    };
  } catch (error) {
    worker.terminate();
    throw error;
  }
}

type Ask = <Kind extends Request["kind"]>(
  request: Extract<Request, { kind: Kind }>,
  transfer: Transferable[],
) => Promise<Answers[Kind]>;

function connect(worker: Worker): Ask {
  const waiting = new Map<number, { resolve: (value: never) => void; reject: (error: Error) => void }>();
  let next = 0;
  let broken: Error | null = null;
  worker.onmessage = ({ data }: MessageEvent<Reply>) => {
    const call = waiting.get(data.id);
    waiting.delete(data.id);
    if ("error" in data) call?.reject(new Error(data.error));
    else call?.resolve(data.value as never);
  };
  worker.onerror = (event) => {
    broken = new Error(event.message || "The decoder's worker could not be started.");
    for (const call of waiting.values()) call.reject(broken);
    waiting.clear();
  };
  return (request, transfer) =>
    new Promise((resolve, reject) => {
      if (broken) return reject(broken);
      next += 1;
      waiting.set(next, { resolve, reject });
      worker.postMessage({ id: next, request }, transfer);
    });
}
