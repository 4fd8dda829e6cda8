/** The server's API, version 1: one function for each route, in the forms of forms.ts. Keeps nothing but the token. */

import { readEvents } from "./events";
import type {
  Annotation,
  AnnotationBody,
  Category,
  DecoderInfo,
  EverythingOptions,
  ExportFormat,
  HistoryEvent,
  ImageState,
  Imported,
  ImportFormat,
  MaskRecord,
  MasksAnswer,
  PredictAnswer,
  Preset,
  Project,
  ProjectImage,
  PromptForm,
  ServiceForm,
  Size,
} from "./forms";
import { ApiError } from "./problems";
import { type Call, type Connection, request } from "./request";

export * from "./forms";
export { ApiError };

export interface Embedding {
  /** A safetensors file: the features, float16. */
  readonly data: ArrayBuffer;
  readonly originalSize: Size;
  readonly inputSize: Size;
}

/** `project` and `image` are ids of the project's; `id` is the engine's of an image. A signal gives up the work. */
export class Api {
  private readonly connection: Connection;

  constructor(base = "", token: string | null = null) {
    this.connection = { base, token };
  }

  get token(): string | null {
    return this.connection.token;
  }

  set token(token: string | null) {
    this.connection.token = token;
  }

  private async json<Form>(path: string, call: Call = {}): Promise<Form> {
    return (await (await request(this.connection, path, call)).json()) as Form;
  }

  /** A listing to its end, page by page. */
  private async all<Key extends string, Item>(path: string, key: Key): Promise<Item[]> {
    const found: Item[] = [];
    let after: number | string | undefined;
    do {
      const page: Record<Key, Item[]> & { next?: number | string | null } = await this.json(
        `${path}${query({ limit: 1000, after })}`,
      );
      found.push(...page[key]);
      after = page.next ?? undefined;
    } while (after !== undefined);
    return found;
  }

  private async nothing(path: string, call: Call): Promise<void> {
    await request(this.connection, path, call);
  }

  // The server and its model

  models(signal?: AbortSignal): Promise<ServiceForm> {
    return this.json("/v1/models", { signal });
  }

  async ready(): Promise<boolean> {
    try {
      await request(this.connection, "/readyz");
      return true;
    } catch (error) {
      if (error instanceof ApiError) return false;
      throw error;
    }
  }

  decoderInfo(signal?: AbortSignal): Promise<DecoderInfo> {
    return this.json("/v1/decoder/info", { signal });
  }

  async decoder(signal?: AbortSignal): Promise<ArrayBuffer> {
    return (await request(this.connection, "/v1/decoder", { signal })).arrayBuffer();
  }

  // Images given to the model

  /** wait: seconds to wait for the encoding before the answer. */
  uploadImage(file: Blob, options: { wait?: number; signal?: AbortSignal } = {}): Promise<ImageState> {
    const headers = { "Content-Type": file.type.startsWith("image/") ? file.type : "application/octet-stream" };
    return this.json(`/v1/images${query({ wait: options.wait })}`, {
      method: "POST",
      body: file,
      headers,
      signal: options.signal,
    });
  }

  imageFromUrl(url: string, options: { wait?: number; signal?: AbortSignal } = {}): Promise<ImageState> {
    return this.json(`/v1/images${query({ wait: options.wait })}`, {
      method: "POST",
      json: { url },
      signal: options.signal,
    });
  }

  imageState(id: string, options: { wait?: number; signal?: AbortSignal } = {}): Promise<ImageState> {
    return this.json(`/v1/images/${id}${query({ wait: options.wait })}`, { signal: options.signal });
  }

  forgetImage(id: string): Promise<void> {
    return this.nothing(`/v1/images/${id}`, { method: "DELETE" });
  }

  async embedding(id: string, options: { wait?: number; signal?: AbortSignal } = {}): Promise<Embedding> {
    const path = `/v1/images/${id}/embedding${query({ wait: options.wait })}`;
    const response = await request(this.connection, path, { signal: options.signal });
    return {
      originalSize: readSize(response.headers.get("X-Original-Size")),
      inputSize: readSize(response.headers.get("X-Input-Size")),
      data: await response.arrayBuffer(),
    };
  }

  predict(
    id: string,
    prompts: readonly PromptForm[],
    options: { multimask?: boolean | null; lowResLogits?: boolean; signal?: AbortSignal | undefined } = {},
  ): Promise<PredictAnswer> {
    const json = { prompts, multimask: options.multimask ?? null, low_res_logits: options.lowResLogits ?? false };
    return this.json(`/v1/images/${id}/predict`, { method: "POST", json, signal: options.signal });
  }

  /** All masks of an image. onProgress: 0 to 1. Raises ApiError for what the stream says went wrong. */
  async everything(
    id: string,
    body: { preset?: Preset; options?: EverythingOptions } = {},
    run: { onProgress?: (done: number) => void; signal?: AbortSignal } = {},
  ): Promise<MasksAnswer> {
    const response = await request(this.connection, `/v1/images/${id}/everything`, {
      method: "POST",
      json: { preset: body.preset ?? "default", options: body.options ?? {} },
      headers: { Accept: "text/event-stream" },
      signal: run.signal,
    });
    if (!response.body) throw new ApiError("The server sent no events.", 0);
    for await (const event of readEvents(response.body)) {
      const data: unknown = JSON.parse(event.data);
      if (event.name === "progress") run.onProgress?.((data as { done: number }).done);
      if (event.name === "result") return data as MasksAnswer;
      if (event.name === "problem") {
        const problem = data as { detail: string; status: number };
        throw new ApiError(problem.detail, problem.status);
      }
    }
    throw new ApiError("The server stopped before all masks were found.", 0);
  }

  describe(
    id: string,
    what: { prompts: readonly PromptForm[] } | { masks: readonly MaskRecord[] },
    signal?: AbortSignal,
  ): Promise<MasksAnswer> {
    return this.json(`/v1/images/${id}/describe`, { method: "POST", json: what, signal });
  }

  // Projects

  async projects(): Promise<Project[]> {
    const found = await this.all<"projects", Project>("/v1/projects", "projects");
    return found.sort((a, b) => b.updated_at.localeCompare(a.updated_at)); // the one changed last first
  }

  createProject(name: string): Promise<Project> {
    return this.json("/v1/projects", { method: "POST", json: { name } });
  }

  project(project: string): Promise<Project> {
    return this.json(`/v1/projects/${project}`);
  }

  renameProject(project: string, name: string): Promise<Project> {
    return this.json(`/v1/projects/${project}`, { method: "PATCH", json: { name } });
  }

  deleteProject(project: string): Promise<void> {
    return this.nothing(`/v1/projects/${project}`, { method: "DELETE" });
  }

  async categories(project: string): Promise<Category[]> {
    return (await this.json<{ categories: Category[] }>(`/v1/projects/${project}/categories`)).categories;
  }

  createCategory(project: string, name: string, colour: string): Promise<Category> {
    return this.json(`/v1/projects/${project}/categories`, { method: "POST", json: { name, colour } });
  }

  updateCategory(project: string, category: number, change: { name?: string; colour?: string }): Promise<Category> {
    return this.json(`/v1/projects/${project}/categories/${category}`, { method: "PATCH", json: change });
  }

  deleteCategory(project: string, category: number): Promise<void> {
    return this.nothing(`/v1/projects/${project}/categories/${category}`, { method: "DELETE" });
  }

  async images(project: string): Promise<ProjectImage[]> {
    return this.all<"images", ProjectImage>(`/v1/projects/${project}/images`, "images");
  }

  addImage(project: string, file: Blob, name: string, signal?: AbortSignal): Promise<ProjectImage> {
    const headers = { "Content-Type": file.type.startsWith("image/") ? file.type : "application/octet-stream" };
    const path = `/v1/projects/${project}/images${query({ name })}`;
    return this.json(path, { method: "POST", body: file, headers, signal });
  }

  image(project: string, image: string): Promise<ProjectImage> {
    return this.json(`/v1/projects/${project}/images/${image}`);
  }

  deleteImage(project: string, image: string): Promise<void> {
    return this.nothing(`/v1/projects/${project}/images/${image}`, { method: "DELETE" });
  }

  async imageFile(project: string, image: string, signal?: AbortSignal): Promise<Blob> {
    return (await request(this.connection, `/v1/projects/${project}/images/${image}/file`, { signal })).blob();
  }

  /** Give a project's image to the model. */
  openImage(
    project: string,
    image: string,
    options: { wait?: number; signal?: AbortSignal } = {},
  ): Promise<ImageState> {
    const path = `/v1/projects/${project}/images/${image}/open${query({ wait: options.wait })}`;
    return this.json(path, { method: "POST", signal: options.signal });
  }

  async annotations(project: string, image: string): Promise<Annotation[]> {
    const path = `/v1/projects/${project}/images/${image}/annotations`;
    return this.all<"annotations", Annotation>(path, "annotations");
  }

  /** version: only if the annotation still is at it; else ApiError 412. */
  putAnnotation(
    project: string,
    image: string,
    annotation: string,
    body: AnnotationBody,
    version?: number,
  ): Promise<Annotation> {
    return this.json(`/v1/projects/${project}/images/${image}/annotations/${annotation}`, {
      method: "PUT",
      json: body,
      headers: match(version),
    });
  }

  deleteAnnotation(project: string, image: string, annotation: string, version?: number): Promise<void> {
    const path = `/v1/projects/${project}/images/${image}/annotations/${annotation}`;
    return this.nothing(path, { method: "DELETE", headers: match(version) });
  }

  /** All of it or nothing. */
  saveAnnotations(
    project: string,
    image: string,
    put: readonly (AnnotationBody & { readonly id: string })[],
    remove: readonly string[],
  ): Promise<{ annotations: Annotation[]; deleted: string[] }> {
    const path = `/v1/projects/${project}/images/${image}/annotations/batch`;
    return this.json(path, { method: "POST", json: { put, delete: remove } });
  }

  history(
    project: string,
    options: { after?: number; limit?: number } = {},
  ): Promise<{ events: HistoryEvent[]; next: number | null }> {
    return this.json(`/v1/projects/${project}/history${query(options)}`);
  }

  async exportProject(project: string, format: ExportFormat): Promise<{ blob: Blob; name: string }> {
    const response = await request(this.connection, `/v1/projects/${project}/export${query({ format })}`);
    return { blob: await response.blob(), name: fileName(response.headers.get("Content-Disposition"), format) };
  }

  importInto(project: string, file: File, format: ImportFormat = "auto"): Promise<Imported> {
    const body = new FormData();
    body.append("file", file, file.name);
    return this.json(`/v1/projects/${project}/import${query({ format })}`, { method: "POST", body });
  }
}

function query(values: Readonly<Record<string, string | number | undefined>>): string {
  const given = Object.entries(values).filter(([, value]) => value !== undefined);
  return given.length ? `?${new URLSearchParams(given.map(([name, value]) => [name, String(value)]))}` : "";
}

function match(version: number | undefined): Record<string, string> {
  return version === undefined ? {} : { "If-Match": `"${version}"` };
}

function readSize(header: string | null): Size {
  const [height, width] = (header ?? "").split(",").map(Number);
  if (!height || !width) throw new ApiError(`The server sent no size of the image: ${header}.`, 0);
  return [height, width];
}

function fileName(disposition: string | null, format: ExportFormat): string {
  const encoded = /filename\*=UTF-8''([^;]+)/i.exec(disposition ?? "")?.[1];
  const plain = /filename="([^"]+)"/i.exec(disposition ?? "")?.[1];
  if (encoded) return decodeURIComponent(encoded);
  return plain ?? `annotations.${format.startsWith("coco") ? "json" : "zip"}`;
}
