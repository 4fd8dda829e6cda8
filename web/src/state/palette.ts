/** Colours of categories and of objects that have none: far apart, visible on photographs, the same after a reload. */

export const PALETTE = [
  "#ff5d5d",
  "#3fa7ff",
  "#ffc531",
  "#2fd08a",
  "#b57bff",
  "#ff8f3d",
  "#22d3d8",
  "#ff6fb5",
  "#a3d638",
  "#6f86ff",
  "#e0a071",
  "#56c7a0",
] as const;

/** The first colour that no category has yet. */
export function freshColour(used: readonly string[]): string {
  const taken = new Set(used.map((colour) => colour.toLowerCase()));
  return PALETTE.find((colour) => !taken.has(colour)) ?? (PALETTE[used.length % PALETTE.length] as string);
}

/** An object's own colour, from its id. */
export function colourOfId(id: string): string {
  let sum = 0;
  for (let i = 0; i < id.length; i += 1) sum = (sum * 31 + id.charCodeAt(i)) >>> 0;
  return PALETTE[sum % PALETTE.length] as string;
}

const TRIES = 24; // twice the colours: one that is rare is nearly always among them

/** An id whose own colour few of `others` have, so that objects made one after another can be told apart. */
export function idOfRareColour(make: () => string, others: readonly string[]): string {
  const used = others.map(colourOfId);
  const count = (id: string): number => used.filter((colour) => colour === colourOfId(id)).length;
  const ids = Array.from({ length: TRIES }, make).map((id) => ({ id, count: count(id) }));
  return ids.reduce((best, each) => (each.count < best.count ? each : best)).id;
}

export function rgb(colour: string): [number, number, number] {
  const value = Number.parseInt(colour.slice(1), 16);
  return [(value >> 16) & 255, (value >> 8) & 255, value & 255];
}
