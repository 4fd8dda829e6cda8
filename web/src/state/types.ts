/** The page's data: what a project, an image and an object are here. No behaviour. */

export type Box = readonly [number, number, number, number]; // x0 y0 x1 y1, image pixels, right and bottom exclusive
export type Point = readonly [number, number]; // x y, image pixels
export type Size = readonly [number, number]; // H, W

/** COCO's compressed run lengths of a mask at the image's size. */
export interface Rle {
  readonly size: Size;
  readonly counts: string;
}

export type Source = "click" | "box" | "scribble" | "text" | "everything" | "brush" | "import";

/** What the user pointed at for one object; the JSON of a server's Prompt, without logits. */
export interface ObjectPrompt {
  readonly points: readonly Point[];
  readonly labels: readonly number[]; // 1 on the object, 0 not
  readonly box?: Box;
  readonly scribble?: readonly Point[];
  readonly scribble_negative?: readonly Point[];
  readonly text?: string;
  readonly mask?: Rle; // what the brush made, where later clicks start from
}

/** One of the masks a model proposed for a prompt. */
export interface Choice {
  readonly rle: Rle;
  readonly iou: number;
  readonly area: number;
  readonly box: Box;
}

export interface SceneObject {
  readonly id: string; // 32 hex digits, made here
  readonly categoryId: number | null;
  readonly rle: Rle;
  readonly area: number;
  readonly box: Box;
  readonly iou: number | null;
  readonly label: string | null;
  readonly source: Source;
  readonly prompt: ObjectPrompt | null;
  readonly choices: readonly Choice[]; // of the last prediction; not saved
  readonly choice: number;
}

export interface Category {
  readonly id: number;
  readonly name: string;
  readonly colour: string; // #rrggbb
}

export interface Project {
  readonly id: string;
  readonly name: string;
  readonly images: number;
  readonly annotations: number;
}

export interface ImageItem {
  readonly id: string; // the project's id of it, or one made here when the server keeps no projects
  readonly name: string;
  readonly size: Size | null;
  readonly annotations: number;
  readonly file?: Blob; // only without projects
}

/** A mask that is offered and not yet an object. */
export interface Proposal {
  readonly id: string;
  readonly rle: Rle;
  readonly area: number;
  readonly box: Box;
  readonly iou: number;
  readonly label: string | null;
  readonly prompt: ObjectPrompt | null;
  readonly source: "everything" | "text";
}

export type Tool = "point" | "scribble" | "brush" | "eraser" | "move";

export interface View {
  readonly scale: number; // CSS pixels per image pixel
  readonly tx: number; // where the image's left edge is, CSS pixels of the stage
  readonly ty: number;
}
