/** What segmenters have in common: a candidate out of run lengths, and previews of which only the latest counts. */

import type { Rle } from "./forms";
import { decodeRle } from "./rle";
import type { Candidate } from "./segmenter";

/** The mask itself is only made when it is read. */
export function candidate(rle: Rle, known: Pick<Candidate, "iou" | "area" | "box" | "lowRes">): Candidate {
  let mask: Uint8Array | null = null;
  return {
    ...known,
    rle,
    height: rle.size[0],
    width: rle.size[1],
    get mask() {
      mask ??= decodeRle(rle);
      return mask;
    },
  };
}

interface Call<Value> {
  readonly job: () => Promise<Value | null>;
  readonly resolve: (value: Value | null) => void;
  readonly reject: (error: unknown) => void;
}

/** Runs one job at a time; of those that wait only the latest is run, the others are answered with null. */
export function latestOnly<Value>(): (job: Call<Value>["job"]) => Promise<Value | null> {
  let busy = false;
  let waiting: Call<Value> | null = null;
  const run = async (call: Call<Value>): Promise<void> => {
    busy = true;
    await call.job().then(call.resolve, call.reject);
    busy = false;
    const next = waiting;
    waiting = null;
    if (next) void run(next);
  };
  return (job) =>
    new Promise((resolve, reject) => {
      const call = { job, resolve, reject };
      if (!busy) return void run(call);
      waiting?.resolve(null);
      waiting = call;
    });
}
