/** What the page asks of the server, and what comes back. Implemented over HTTP in http_backend.ts, and by the tests. */

import type { Box, Category, ImageItem, Project, Rle, Source } from "./types";

export interface ServerInfo {
  readonly served: string;
  readonly presets: readonly string[]; // of everything mode, those that the served model knows
  readonly version: string;
  readonly text: boolean;
  readonly projects: boolean;
  readonly decoder: boolean;
  readonly prompts: readonly string[]; // the kinds that the served model understands
  readonly uploadBytes: number | null;
}

export interface MaskRecord {
  readonly segmentation: Rle;
  readonly area: number;
  readonly box: Box;
  readonly predicted_iou: number;
  readonly prompt: unknown;
  readonly label: string | null;
}

/** An annotation as it is sent. */
export interface AnnotationBody {
  readonly segmentation: Rle;
  readonly category_id: number | null;
  readonly prompt: Record<string, unknown> | null;
  readonly predicted_iou: number | null;
  readonly label: string | null;
  readonly source: Source;
}

export interface Annotation extends Omit<AnnotationBody, "prompt"> {
  readonly id: string;
  readonly area: number;
  readonly box: Box;
  readonly prompt: unknown;
}

export interface Imported {
  readonly imported: number;
  readonly skipped: readonly { readonly what: string; readonly why: string }[];
}

export interface Backend {
  info(): Promise<ServerInfo>;
  projects(): Promise<Project[]>;
  createProject(name: string): Promise<Project>;
  renameProject(project: string, name: string): Promise<Project>;
  deleteProject(project: string): Promise<void>;
  categories(project: string): Promise<Category[]>;
  createCategory(project: string, name: string, colour: string): Promise<Category>;
  updateCategory(project: string, id: number, change: { name?: string; colour?: string }): Promise<Category>;
  deleteCategory(project: string, id: number): Promise<void>;
  images(project: string): Promise<ImageItem[]>;
  addImage(project: string, file: Blob, name: string): Promise<ImageItem>;
  deleteImage(project: string, image: string): Promise<void>;
  imageFile(project: string, image: string): Promise<Blob>;
  /** Give a project's image to the model; the engine's id of it. */
  openImage(project: string, image: string): Promise<string>;
  /** Give an image to the model without a project. */
  uploadImage(file: Blob): Promise<string>;
  annotations(project: string, image: string): Promise<Annotation[]>;
  saveAnnotations(
    project: string,
    image: string,
    put: readonly (AnnotationBody & { id: string })[],
    remove: readonly string[],
  ): Promise<void>;
  exportProject(project: string, format: string): Promise<{ blob: Blob; name: string }>;
  importInto(project: string, file: File): Promise<Imported>;
  everything(
    engineImage: string,
    body: { preset: string; options: Record<string, number> },
    onProgress: (done: number) => void,
    signal: AbortSignal,
  ): Promise<MaskRecord[]>;
  findText(engineImage: string, text: string, signal: AbortSignal): Promise<MaskRecord[]>;
}

