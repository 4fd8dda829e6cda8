/** The table of keys: what they do, where they count, and how the help sheet shows them. */

export type Action =
  | "undo"
  | "redo"
  | "done"
  | "cancel"
  | "choice-1"
  | "choice-2"
  | "choice-3"
  | "tool-point"
  | "tool-scribble"
  | "tool-brush"
  | "tool-eraser"
  | "tool-move"
  | "brush-smaller"
  | "brush-larger"
  | "zoom-in"
  | "zoom-out"
  | "zoom-fit"
  | "delete"
  | "hide"
  | "previous-image"
  | "next-image"
  | "previous-object"
  | "next-object"
  | "keep-all"
  | "everything"
  | "find"
  | "category"
  | "open"
  | "help";

export interface Shortcut {
  readonly action: Action;
  readonly keys: readonly string[]; // KeyboardEvent.key, lower case; "mod+" is Ctrl, or Command on a Mac
  readonly does: string;
  readonly group: "Object" | "Tools" | "View" | "Project";
}

export const SHORTCUTS: readonly Shortcut[] = [
  { action: "undo", keys: ["mod+z"], does: "Undo", group: "Object" },
  { action: "redo", keys: ["mod+shift+z", "mod+y"], does: "Redo", group: "Object" },
  { action: "done", keys: ["enter", "n"], does: "Done; the next click begins a new object", group: "Object" },
  { action: "cancel", keys: ["escape"], does: "Stop what runs, or deselect", group: "Object" },
  { action: "choice-1", keys: ["1"], does: "First mask", group: "Object" },
  { action: "choice-2", keys: ["2"], does: "Second mask", group: "Object" },
  { action: "choice-3", keys: ["3"], does: "Third mask", group: "Object" },
  { action: "category", keys: ["c"], does: "Category of the object", group: "Object" },
  { action: "hide", keys: ["h"], does: "Show or hide the object", group: "Object" },
  { action: "delete", keys: ["delete", "backspace"], does: "Delete the object", group: "Object" },
  { action: "next-object", keys: ["j"], does: "Next object or proposal", group: "Object" },
  { action: "previous-object", keys: ["k"], does: "Previous object or proposal", group: "Object" },
  { action: "keep-all", keys: ["a"], does: "Keep all proposals", group: "Object" },
  { action: "tool-point", keys: ["p"], does: "Point and box", group: "Tools" },
  { action: "tool-scribble", keys: ["s"], does: "Scribble", group: "Tools" },
  { action: "tool-brush", keys: ["b"], does: "Brush", group: "Tools" },
  { action: "tool-eraser", keys: ["e"], does: "Eraser", group: "Tools" },
  { action: "tool-move", keys: ["v"], does: "Move and select", group: "Tools" },
  { action: "brush-smaller", keys: ["["], does: "Smaller brush", group: "Tools" },
  { action: "brush-larger", keys: ["]"], does: "Larger brush", group: "Tools" },
  { action: "everything", keys: ["g"], does: "Find everything", group: "Tools" },
  { action: "find", keys: ["/"], does: "Find by words", group: "Tools" },
  { action: "zoom-in", keys: ["+", "="], does: "Zoom in", group: "View" },
  { action: "zoom-out", keys: ["-"], does: "Zoom out", group: "View" },
  { action: "zoom-fit", keys: ["0"], does: "Fit the image", group: "View" },
  { action: "previous-image", keys: ["pageup", ","], does: "Previous image", group: "Project" },
  { action: "next-image", keys: ["pagedown", "."], does: "Next image", group: "Project" },
  { action: "open", keys: ["mod+o"], does: "Open images", group: "Project" },
  { action: "help", keys: ["?"], does: "This sheet", group: "Project" },
];

/** What the pointer does, for the help sheet. */
export const GESTURES: readonly { readonly how: string; readonly does: string }[] = [
  { how: "Click, tap", does: "This belongs to the object" },
  { how: "Right-click, Alt-click, long press", does: "This does not" },
  { how: "Drag", does: "A box: a new object" },
  { how: "Shift-drag", does: "A box for the selected object" },
  { how: "Ctrl-click", does: "Select the object under the pointer" },
  { how: "Wheel, pinch", does: "Zoom" },
  { how: "Space-drag, middle button, two fingers", does: "Pan" },
  { how: "Arrow keys on the image", does: "Move the crosshair; Shift: further" },
  { how: "Enter, Shift-Enter on the image", does: "Click, or right-click, at the crosshair" },
  { how: "X on the image, twice", does: "A box from corner to corner" },
];

export interface Press {
  readonly key: string;
  readonly ctrlKey: boolean;
  readonly metaKey: boolean;
  readonly shiftKey: boolean;
  readonly altKey: boolean;
}

/** The action of a key press, or null. Shift is part of a key only for letters with "mod" ("?" is Shift already). */
export function actionOf(press: Press): Action | null {
  if (press.altKey) return null;
  const key = press.key.toLowerCase();
  const mod = press.ctrlKey || press.metaKey;
  const letter = key.length === 1 && key >= "a" && key <= "z";
  if (!mod && letter && press.shiftKey) return null;
  const spelled = `${mod ? "mod+" : ""}${mod && press.shiftKey ? "shift+" : ""}${key}`;
  return SHORTCUTS.find((shortcut) => shortcut.keys.includes(spelled))?.action ?? null;
}

const NAMES: Readonly<Record<string, string>> = {
  escape: "Esc",
  pageup: "PgUp",
  pagedown: "PgDn",
  delete: "Del",
  backspace: "⌫",
  enter: "Enter",
};

/** "mod+shift+z" as people read it. */
export function keyCaps(key: string, mac: boolean): string[] {
  if (key === "+") return ["+"];
  return key.split("+").map((part) => {
    if (part === "mod") return mac ? "⌘" : "Ctrl";
    if (part === "shift") return mac ? "⇧" : "Shift";
    return NAMES[part] ?? part.toUpperCase();
  });
}

/** Whether a key belongs to the field that has the focus. */
export function isTyping(target: EventTarget | null): boolean {
  if (!(target instanceof HTMLElement)) return false;
  if (target instanceof HTMLInputElement) return !["checkbox", "radio", "button", "range"].includes(target.type);
  return target instanceof HTMLTextAreaElement || target instanceof HTMLSelectElement || target.isContentEditable;
}
