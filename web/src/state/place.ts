/** The URL's fragment: which project and image are open, so that a reload or a link comes back to them. */

export interface Place {
  readonly project: string | null;
  readonly image: string | null;
}

const ID = /^[0-9a-f]{32}$/;

export function readPlace(hash: string): Place {
  const values = new URLSearchParams(hash.replace(/^#/, ""));
  const id = (key: string): string | null => {
    const value = values.get(key) ?? "";
    return ID.test(value) ? value : null;
  };
  return { project: id("project"), image: id("image") };
}

export function writePlace(place: Place): string {
  const parts = Object.entries(place).flatMap(([key, value]) => (value ? [`${key}=${value}`] : []));
  return parts.length > 0 ? `#${parts.join("&")}` : "";
}

/** 32 random hex digits; works on plain http too, where crypto.randomUUID is missing. */
export function makeId(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
