/** What the granularity slider means for everything mode. */

export interface Granularity {
  readonly name: string;
  readonly preset: "default" | "whole" | "part" | "subpart" | "dense" | "fast";
  readonly options: Readonly<Record<string, number>>;
}

export const GRANULARITIES: readonly Granularity[] = [
  { name: "Fewest, largest", preset: "whole", options: { max_masks: 25, merge_duplicates: 0.7 } },
  { name: "Fewer, larger", preset: "whole", options: { merge_duplicates: 0.8 } },
  { name: "Balanced", preset: "default", options: {} },
  { name: "More, smaller", preset: "default", options: { points_per_side: 32 } },
  { name: "Most, smallest", preset: "dense", options: {} },
];

/** The same steps for models that find objects in one pass: they know no points to ask at, and no sizes of answers. */
const ONE_PASS: readonly Granularity[] = GRANULARITIES.map(({ name, preset, options }) => {
  const { points_per_side: points, ...rest } = options;
  return { name, preset: preset === "dense" || points !== undefined ? "dense" : "default", options: rest };
});

export const BALANCED = 2;
const LEAST_PART = 0.004; // of the image: below it, nothing counts as large

/** The body of the request. presets: those that the served model knows. The coarsest step leaves out what is small. */
export function everythingBody(
  step: number,
  size: readonly [number, number],
  presets: readonly string[],
): { preset: string; options: Record<string, number> } {
  const steps = GRANULARITIES.every((each) => presets.includes(each.preset)) ? GRANULARITIES : ONE_PASS;
  const { preset, options } = steps[step] ?? (steps[BALANCED] as Granularity);
  const least: Record<string, number> = step === 0 ? { min_area: Math.round(size[0] * size[1] * LEAST_PART) } : {};
  return { preset, options: { ...options, ...least } };
}
