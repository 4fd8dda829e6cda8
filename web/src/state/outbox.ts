/** Annotations on their way to the server: kept until it has acknowledged them, sent in batches, retried. */

import { ApiError } from "../problems";
import type { AnnotationBody } from "./backend";
import type { Shelf } from "./storage";

export interface Entry {
  readonly project: string;
  readonly image: string;
  readonly id: string;
  readonly body: AnnotationBody | null; // null: delete it
  readonly stamp: string; // which change this is: an acknowledgement of an older one does not count for it
}

export interface SaveState {
  readonly state: "saved" | "saving" | "waiting" | "failed";
  readonly pending: number;
  readonly error: string | null;
}

export type Send = (
  project: string,
  image: string,
  put: readonly (AnnotationBody & { id: string })[],
  remove: readonly string[],
) => Promise<void>;

export interface Outbox {
  add(entries: readonly Omit<Entry, "stamp">[]): void;
  /** What is not acknowledged for an image, to lay over what the server says. */
  pendingFor(project: string, image: string): readonly Entry[];
  /** Drop what waits for an image or a project that has been deleted on purpose. */
  forget(project: string, image?: string): void;
  flush(): Promise<void>;
  readonly durable: boolean;
}

const BATCH_ENTRIES = 100;
const BATCH_CHARACTERS = 2_000_000;
const SOON = 120; // milliseconds: changes that come together are sent together
const PATIENCE = [1, 2, 4, 8, 15, 30]; // seconds between tries

// The server has understood and refuses; the same again would not help.
const isFinal = (error: unknown): boolean =>
  error instanceof ApiError && [400, 403, 404, 409, 412, 413, 415, 422].includes(error.status);

const keyOf = (entry: Pick<Entry, "project" | "image" | "id">): string => `${entry.project}/${entry.image}/${entry.id}`;

export async function openOutbox(
  shelf: Shelf<Entry>,
  send: Send,
  onState: (state: SaveState) => void,
): Promise<Outbox> {
  const pending = await shelf.all();
  const refused = new Map<string, string>(); // key -> why; tried again only on request
  let counter = 0;
  let tries = 0;
  let timer: ReturnType<typeof setTimeout> | null = null;
  let running: Promise<void> | null = null;
  let problem: string | null = null;
  let durable = shelf.durable;

  function tell(state: SaveState["state"]): void {
    const error = [...refused.values()][0] ?? problem;
    onState({ state: state === "saved" && refused.size > 0 ? "failed" : state, pending: pending.size, error });
  }

  function later(milliseconds: number): void {
    if (timer) clearTimeout(timer);
    timer = setTimeout(() => {
      timer = null;
      void start();
    }, milliseconds);
  }

  function start(): Promise<void> {
    running ??= drain().finally(() => {
      running = null;
    });
    return running;
  }

  async function drain(): Promise<void> {
    for (let batch = nextBatch(); batch.length > 0; batch = nextBatch()) {
      tell("saving");
      try {
        await sendBatch(batch);
        await settle(batch);
        tries = 0;
        problem = null;
      } catch (error) {
        const why = error instanceof Error ? error.message : String(error);
        if (isFinal(error)) {
          await refuse(batch, why);
          continue;
        }
        problem = why;
        tell("waiting");
        later(1000 * (PATIENCE[Math.min(tries, PATIENCE.length - 1)] as number));
        tries += 1;
        return;
      }
    }
    tell("saved");
  }

  /** One refused annotation must not hold up the others: they go one by one, once. */
  async function refuse(batch: readonly Entry[], why: string): Promise<void> {
    if (batch.length === 1) {
      refused.set(keyOf(batch[0] as Entry), why);
      return;
    }
    for (const entry of batch) {
      try {
        await sendBatch([entry]);
        await settle([entry]);
      } catch (error) {
        if (!isFinal(error)) return; // the next round of drain meets it again
        refused.set(keyOf(entry), error instanceof Error ? error.message : why);
      }
    }
  }

  function nextBatch(): Entry[] {
    const batch: Entry[] = [];
    let characters = 0;
    for (const [key, entry] of pending) {
      const first = batch[0];
      if (refused.has(key)) continue;
      if (first && (entry.project !== first.project || entry.image !== first.image)) continue;
      characters += entry.body ? entry.body.segmentation.counts.length + 500 : 50;
      if (batch.length >= BATCH_ENTRIES || (first && characters > BATCH_CHARACTERS)) break;
      batch.push(entry);
    }
    return batch;
  }

  function sendBatch(batch: readonly Entry[]): Promise<void> {
    const { project, image } = batch[0] as Entry;
    const put = batch.flatMap((entry) => (entry.body ? [{ id: entry.id, ...entry.body }] : []));
    const remove = batch.flatMap((entry) => (entry.body ? [] : [entry.id]));
    return send(project, image, put, remove);
  }

  async function settle(batch: readonly Entry[]): Promise<void> {
    const done = batch.filter((entry) => pending.get(keyOf(entry))?.stamp === entry.stamp).map(keyOf);
    for (const key of done) pending.delete(key);
    await keep(() => shelf.remove(done));
  }

  async function keep(act: () => Promise<void>): Promise<void> {
    try {
      await act();
    } catch {
      durable = false; // the disk is full or storage was cleared: what waits lives only in this page
    }
  }

  if (pending.size > 0) later(0);
  else tell("saved");

  return {
    add(entries) {
      const stamped = new Map<string, Entry>();
      for (const entry of entries) {
        counter += 1;
        stamped.set(keyOf(entry), { ...entry, stamp: `${Date.now()}-${counter}` });
      }
      if (stamped.size === 0) return;
      stamped.forEach((entry, key) => {
        pending.delete(key);
        pending.set(key, entry);
        refused.delete(key);
      });
      void keep(() => shelf.put(stamped));
      tell(tries > 0 ? "waiting" : "saving");
      if (tries === 0 && !running) later(SOON);
    },
    pendingFor: (project, image) =>
      [...pending.values()].filter((entry) => entry.project === project && entry.image === image),
    forget(project, image) {
      const gone = [...pending.entries()]
        .filter(([, entry]) => entry.project === project && (image === undefined || entry.image === image))
        .map(([key]) => key);
      for (const key of gone) {
        pending.delete(key);
        refused.delete(key);
      }
      void keep(() => shelf.remove(gone));
      tell(pending.size === 0 ? "saved" : tries > 0 ? "waiting" : "saving");
    },
    flush() {
      refused.clear();
      tries = 0;
      if (timer) clearTimeout(timer);
      timer = null;
      return start();
    },
    get durable() {
      return durable;
    },
  };
}
