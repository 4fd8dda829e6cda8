/** All that the page shows, as one value. */

import type { ServerInfo } from "./backend";
import { BALANCED } from "./granularity";
import type { SaveState } from "./outbox";
import { emptyScene, type Scene } from "./scene";
import type { Box, Category, ImageItem, ObjectPrompt, Point, Project, Proposal, Rle, Size, Tool, View } from "./types";

export type Theme = "auto" | "light" | "dark";

/** A prompt whose answer is not here yet. */
export interface Pending {
  readonly id: string;
  readonly prompt: ObjectPrompt;
}

/** What the hand is drawing just now. */
export type Drawing =
  | { readonly kind: "box"; readonly from: Point; readonly to: Point }
  | { readonly kind: "stroke"; readonly points: readonly Point[]; readonly label: 0 | 1 }
  | { readonly kind: "paint"; readonly points: readonly Point[]; readonly radius: number; readonly value: 0 | 1 };

/** rle: of a size that stands for the whole image, which may be larger; box and area: image pixels. */
export interface Preview {
  readonly rle: Rle;
  readonly box: Box;
  readonly area: number;
}

export interface AppState {
  readonly connection: "connecting" | "ready" | "offline" | "token";
  readonly info: ServerInfo | null;
  readonly projects: readonly Project[];
  readonly projectId: string | null;
  readonly categories: readonly Category[];
  readonly categoryId: number | null; // of the next object
  readonly images: readonly ImageItem[];
  readonly imageId: string | null;
  readonly size: Size | null;
  readonly photo: Blob | null; // of the open image
  readonly busy: { readonly what: string; readonly done: number | null } | null;
  readonly adding: { readonly done: number; readonly of: number } | null; // images being uploaded
  readonly mode: "browser" | "server" | null; // where clicks are answered
  readonly modeReason: string | null;
  readonly tool: Tool;
  readonly radius: number; // of the brush, image pixels
  readonly view: View;
  readonly stage: Size; // CSS pixels
  readonly scene: Scene;
  readonly hidden: ReadonlySet<string>;
  readonly pending: Pending | null;
  readonly drawing: Drawing | null;
  readonly preview: Preview | null;
  readonly pointer: Point | null; // over the image, image pixels
  readonly crosshair: Point | null; // moved by the arrow keys
  readonly proposals: readonly Proposal[] | null;
  readonly proposal: string | null; // the one under the pointer or the keys
  readonly finding: { readonly what: "everything" | "text"; readonly done: number | null } | null;
  readonly granularity: number;
  readonly save: SaveState;
  readonly message: string; // for the live region
  readonly lastClickMs: number | null;
  readonly theme: Theme;
}

export const initialState: AppState = {
  connection: "connecting",
  info: null,
  projects: [],
  projectId: null,
  categories: [],
  categoryId: null,
  images: [],
  imageId: null,
  size: null,
  photo: null,
  busy: null,
  adding: null,
  mode: null,
  modeReason: null,
  tool: "point",
  radius: 16,
  view: { scale: 1, tx: 0, ty: 0 },
  stage: [1, 1],
  scene: emptyScene,
  hidden: new Set(),
  pending: null,
  drawing: null,
  preview: null,
  pointer: null,
  crosshair: null,
  proposals: null,
  proposal: null,
  finding: null,
  granularity: BALANCED,
  save: { state: "saved", pending: 0, error: null },
  message: "",
  lastClickMs: null,
  theme: "auto",
};
