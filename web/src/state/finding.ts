/** Everything mode and words: many masks at once, offered as proposals; a proposal that is kept becomes an object. */

import { type App, isAbort, reasonOf } from "./app";
import type { MaskRecord } from "./backend";
import { everythingBody, GRANULARITIES } from "./granularity";
import { makeId } from "./place";
import { promptFromJson } from "./prompt";
import { hits } from "./runs";
import * as scenes from "./scene";
import type { Point, Proposal, SceneObject } from "./types";

export interface Finding {
  everything(): Promise<void>;
  text(words: string): Promise<void>;
  cancel(): void;
  keep(id: string): void;
  keepAll(): void;
  discard(): void;
  /** The proposal under a point: the smallest, as larger ones can be pointed at elsewhere. */
  at(point: Point): Proposal | null;
  step(direction: 1 | -1): void;
}

/** Proposals that are no objects yet. An object has its proposal's id, so that undoing "keep" offers it again. */
export function openProposals(proposals: readonly Proposal[] | null, objects: readonly SceneObject[]): Proposal[] {
  const kept = new Set(objects.map((object) => object.id));
  return (proposals ?? []).filter((proposal) => !kept.has(proposal.id));
}

export function createFinding(app: App): Finding {
  const { store, session, say } = app;
  let stop: AbortController | null = null;

  async function find(
    what: "everything" | "text",
    work: (engineImage: string, signal: AbortSignal) => Promise<MaskRecord[]>,
    nothing: string,
  ): Promise<void> {
    const engineImage = session.engineImage;
    if (!engineImage) return;
    stop?.abort();
    const own = new AbortController();
    stop = own;
    store.set({ finding: { what, done: what === "text" ? null : 0 }, proposals: null, proposal: null });
    try {
      const records = await work(engineImage, own.signal);
      if (own.signal.aborted) return;
      const proposals = records.map((record) => proposalOf(record, what)).sort((a, b) => b.area - a.area);
      store.set({ proposals: proposals.length > 0 ? proposals : null });
      say.status(proposals.length > 0 ? `${proposals.length} masks found. Click one to keep it.` : nothing);
    } catch (error) {
      if (!isAbort(error) && !own.signal.aborted) say.notice(reasonOf(error));
    } finally {
      if (stop === own) {
        stop = null;
        store.set({ finding: null });
      }
    }
  }

  function keepThese(proposals: readonly Proposal[], label: string, category: number | null): void {
    const { scene, categories } = store.get();
    const objects = proposals.map((proposal): SceneObject => {
      const named = categories.find((category) => category.name.toLowerCase() === proposal.label?.toLowerCase());
      return {
        id: proposal.id,
        categoryId: named?.id ?? category,
        rle: proposal.rle,
        area: proposal.area,
        box: proposal.box,
        iou: proposal.iou,
        label: proposal.label,
        source: proposal.source,
        prompt: proposal.prompt,
        choices: [],
        choice: 0,
      };
    });
    session.changeScene(scenes.commit(scene, label, objects, [], null));
  }

  return {
    everything() {
      const { granularity, size, info } = store.get();
      if (!size || !info) return Promise.resolve();
      const body = everythingBody(granularity, size, info.presets);
      say.status(`Finding everything: ${GRANULARITIES[granularity]?.name ?? ""}.`);
      const onProgress = (done: number): void => {
        if (store.get().finding?.what === "everything") store.set({ finding: { what: "everything", done } });
      };
      return find(
        "everything",
        (image, signal) => app.backend.everything(image, body, onProgress, signal),
        "No mask was found. Try smaller ones.",
      );
    },
    text(words) {
      const text = words.trim().replace(/\s+/g, " ");
      if (!text) return Promise.resolve();
      return find("text", (image, signal) => app.backend.findText(image, text, signal), `Nothing looks like “${text}”.`);
    },
    cancel() {
      if (!stop) return;
      stop.abort();
      stop = null;
      store.set({ finding: null });
      say.status("Cancelled.");
    },
    keep(id) {
      const { proposals, scene } = store.get();
      const open = openProposals(proposals, scene.objects);
      const proposal = open.find((each) => each.id === id);
      if (!proposal) return;
      keepThese([proposal], "Keep", store.get().categoryId);
      say.status(`Kept. ${open.length - 1} left.`);
      store.set({ proposal: null });
    },
    keepAll() {
      const { proposals, scene } = store.get();
      const open = openProposals(proposals, scene.objects);
      if (open.length === 0) return;
      keepThese(open, "Keep all", null); // all things of an image are hardly of one category
      say.status(`${open.length} objects kept.`);
      store.set({ proposal: null });
    },
    discard: () => store.set({ proposals: null, proposal: null }),
    at(point) {
      const { proposals, scene, size } = store.get();
      if (!proposals || !size) return null;
      const [x, y] = point;
      const under = openProposals(proposals, scene.objects).filter(
        ({ box, rle }) =>
          x >= box[0] && x < box[2] && y >= box[1] && y < box[3] && hits(app.runsOf(rle), size, x, y),
      );
      return under.sort((a, b) => a.area - b.area)[0] ?? null;
    },
    step(direction) {
      const { proposals, proposal, scene } = store.get();
      const open = openProposals(proposals, scene.objects);
      if (open.length === 0) return;
      const at = open.findIndex((each) => each.id === proposal);
      const next = open[(at + direction + open.length) % open.length] ?? open[0];
      store.set({ proposal: next?.id ?? null });
      if (next) say.status(`Proposal ${open.indexOf(next) + 1} of ${open.length}. Enter keeps it.`);
    },
  };
}

function proposalOf(record: MaskRecord, source: "everything" | "text"): Proposal {
  const prompt = promptFromJson(record.prompt);
  return {
    id: makeId(),
    rle: record.segmentation,
    area: record.area,
    box: record.box,
    iou: record.predicted_iou,
    label: record.label ?? prompt?.text ?? null,
    prompt,
    source,
  };
}
