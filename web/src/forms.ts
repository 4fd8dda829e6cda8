/** The JSON forms of the server's API, version 1, as they travel. Sizes are [height, width], boxes x0 y0 x1 y1. */

export type Size = readonly [height: number, width: number];
export type Box = [x0: number, y0: number, x1: number, y1: number];

/** A mask in COCO's run lengths, compressed. */
export interface Rle {
  readonly size: Size;
  readonly counts: string;
}

/** Low-resolution logits: base64 of float32, little-endian, row by row. */
export interface LogitsForm {
  readonly shape: readonly [number, number];
  readonly float32: string;
}

/** What one object is pointed at with, in pixels of the original image. */
export interface PromptForm {
  readonly points?: readonly (readonly [number, number])[];
  readonly labels?: readonly number[];
  readonly box?: readonly [number, number, number, number];
  readonly mask?: Rle;
  readonly low_res_logits?: LogitsForm;
  readonly polygon?: readonly (readonly [number, number])[];
  readonly scribble?: readonly (readonly [number, number])[];
  readonly scribble_negative?: readonly (readonly [number, number])[];
  readonly text?: string;
}

export interface MaskRecord {
  readonly segmentation: Rle;
  readonly area: number;
  readonly box: Box;
  readonly predicted_iou: number;
  readonly prompt: PromptForm | null;
  readonly label: string | null;
  readonly stability_score?: number | null;
  readonly crop_box?: Box | null;
  readonly detection_score?: number | null;
  readonly label_score?: number | null;
  readonly label_scores?: Readonly<Record<string, number>> | null;
  readonly caption?: string | null;
  readonly caption_score?: number | null;
  readonly similarity?: number | null;
}

export interface ImageState {
  readonly id: string;
  readonly size: Size;
  readonly state: "queued" | "encoding" | "ready" | "failed";
  readonly model: string;
  readonly queue_position: number | null;
  readonly error: string | null;
}

export interface PromptAnswer {
  readonly masks: readonly MaskRecord[];
  readonly best: number | null;
  readonly low_res_logits?: readonly LogitsForm[] | null;
}

export interface PredictAnswer {
  readonly size: Size;
  readonly results: readonly PromptAnswer[];
}

export interface MasksAnswer {
  readonly size: Size;
  readonly masks: readonly MaskRecord[];
}

export type Preset = "default" | "whole" | "part" | "subpart" | "dense" | "fast";

export interface EverythingOptions {
  readonly points_per_side?: number;
  readonly pred_iou_thresh?: number;
  readonly stability_score_thresh?: number;
  readonly box_nms_thresh?: number;
  readonly crop_n_layers?: number;
  readonly min_mask_region_area?: number;
  readonly levels?: readonly ("whole" | "part" | "subpart")[];
  readonly min_area?: number;
  readonly max_masks?: number;
  readonly merge_duplicates?: number;
  readonly panoptic?: boolean;
}

export interface ModelForm {
  readonly name: string;
  readonly family: string;
  readonly licence: string;
  readonly prompts: readonly string[];
  readonly served: boolean;
}

export interface ServiceForm {
  readonly models: readonly ModelForm[];
  readonly served: string;
  readonly presets: readonly string[];
  readonly text: boolean;
  readonly describe: boolean;
  readonly urls: boolean;
  readonly projects: boolean;
  readonly decoder: boolean;
  readonly limits: { readonly upload_bytes: number; readonly pixels: number };
  readonly version: string;
}

/** How the served model wants prompts and gives masks: what decoder.json says. */
export interface DecoderInfo {
  readonly format: string;
  readonly variant: string;
  readonly weights_sha256: string;
  readonly sha256: string;
  readonly bytes: number;
  readonly features: readonly string[];
  readonly has_mask_input: boolean;
  readonly single: readonly number[];
  readonly several: readonly number[];
  readonly multimask_default: "single_point" | "always" | "never";
  readonly frame: FrameForm;
  readonly max_points: number | null;
}

export interface FrameForm {
  readonly long_side: number;
  readonly pad_to: number | null;
  readonly pad_multiple: number;
  readonly low_res_stride: number;
  readonly keep_aspect: boolean;
  readonly uniform_prompt_scale: boolean;
  readonly mask_resize: "two_step" | "bicubic";
}

export interface Project {
  readonly id: string;
  readonly name: string;
  readonly created_at: string;
  readonly updated_at: string;
  readonly images: number;
  readonly annotations: number;
}

export interface Category {
  readonly id: number;
  readonly name: string;
  readonly colour: string;
}

export interface ProjectImage {
  readonly id: string;
  readonly name: string;
  readonly size: Size;
  readonly bytes: number;
  readonly annotations: number;
  readonly created_at: string;
}

export type Source = "click" | "box" | "scribble" | "text" | "everything" | "brush" | "import";

export interface AnnotationBody {
  readonly segmentation: Rle;
  readonly category_id: number | null;
  readonly prompt: PromptForm | null;
  readonly predicted_iou: number | null;
  readonly label: string | null;
  readonly source: Source;
}

export interface Annotation extends AnnotationBody {
  readonly id: string;
  readonly area: number;
  readonly box: Box;
  readonly version: number;
  readonly created_at: string;
  readonly updated_at: string;
}

export interface HistoryEvent {
  readonly seq: number;
  readonly time: string;
  readonly action: string;
  readonly image_id: string | null;
  readonly annotation_id: string | null;
  readonly before: unknown;
  readonly after: unknown;
}

export type ExportFormat =
  | "coco"
  | "coco-polygons"
  | "yolo"
  | "labelme"
  | "png"
  | "labels"
  | "cutout"
  | "geojson"
  | "json";

export type ImportFormat = "auto" | "coco" | "yolo" | "labelme" | "labels" | "png" | "geojson" | "json";

export interface Imported {
  readonly imported: number;
  readonly skipped: readonly { readonly what: string; readonly why: string }[];
}
