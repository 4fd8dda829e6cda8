/** The parts that the actions share: the state, the server, the model for the open image, what is being saved. */

import type { Candidate, PagePrompt, Segmenter } from "../segmenter";
import { type AppState, initialState } from "./app_state";
import type { Backend } from "./backend";
import type { Outbox } from "./outbox";
import { type Runs, runsCache } from "./runs";
import type { Scene } from "./scene";
import { createStore, type Store } from "./store";
import type { Rle } from "./types";

export type { Candidate, PagePrompt, Segmenter };

export interface Say {
  /** A short sentence for the status line and screen readers. */
  status(text: string): void;
  /** Something went wrong or needs to be known; stays until it is read. */
  notice(text: string, action?: { label: string; run: () => void }): void;
}

export type OpenSegmenter = (
  engineImage: string,
  onProgress: (what: string, done: number) => void,
) => Promise<Segmenter>;

export interface App {
  readonly store: Store<AppState>;
  readonly backend: Backend;
  readonly openSegmenter: OpenSegmenter;
  readonly say: Say;
  readonly session: Session;
  readonly runsOf: (rle: Rle) => Runs;
}

/** What is not shown and yet shared: set by the session, used by the actions. */
export interface Session {
  outbox: Outbox | null;
  segmenter: Segmenter | null;
  engineImage: string | null; // the open image's id in the engine
  /** Answers again after the engine forgot the image. */
  reopen: (() => Promise<Segmenter>) | null;
  /** Replace the scene; what changed in its objects is sent to the server. */
  changeScene(next: Scene): void;
}

export function createApp(backend: Backend, openSegmenter: OpenSegmenter, say: Say): App {
  const session: Session = {
    outbox: null,
    segmenter: null,
    engineImage: null,
    reopen: null,
    changeScene: () => undefined,
  };
  return { store: createStore(initialState), backend, openSegmenter, say, session, runsOf: runsCache() };
}

export function isAbort(error: unknown): boolean {
  return error instanceof Error && error.name === "AbortError";
}

export function reasonOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
