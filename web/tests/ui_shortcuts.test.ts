import { describe, expect, test } from "vitest";
import { actionOf, keyCaps, SHORTCUTS } from "../src/state/shortcuts";

const press = (key: string, held: Partial<Record<"ctrlKey" | "metaKey" | "shiftKey" | "altKey", boolean>> = {}) => ({
  key,
  ctrlKey: false,
  metaKey: false,
  shiftKey: false,
  altKey: false,
  ...held,
});

describe("shortcuts", () => {
  test("undo and redo, on a Mac too", () => {
    expect(actionOf(press("z", { ctrlKey: true }))).toBe("undo");
    expect(actionOf(press("z", { metaKey: true }))).toBe("undo");
    expect(actionOf(press("Z", { ctrlKey: true, shiftKey: true }))).toBe("redo");
    expect(actionOf(press("y", { ctrlKey: true }))).toBe("redo");
  });

  test("what Shift writes counts, Shift with a letter does not", () => {
    expect(actionOf(press("?", { shiftKey: true }))).toBe("help");
    expect(actionOf(press("+", { shiftKey: true }))).toBe("zoom-in");
    expect(actionOf(press("N", { shiftKey: true }))).toBeNull();
  });

  test("leave the browser's own keys alone", () => {
    expect(actionOf(press("b", { ctrlKey: true }))).toBeNull();
    expect(actionOf(press("p", { altKey: true }))).toBeNull();
    expect(actionOf(press("0", { ctrlKey: true }))).toBeNull();
  });

  test("no key means two things, every shortcut can be pressed", () => {
    const keys = SHORTCUTS.flatMap((shortcut) => shortcut.keys);
    expect(new Set(keys).size).toBe(keys.length);
    for (const { action, keys: own } of SHORTCUTS) {
      for (const key of own) {
        const parts = key === "+" ? ["+"] : key.split("+");
        const held = { ctrlKey: parts.includes("mod"), shiftKey: parts.includes("shift") };
        expect(actionOf(press(parts.at(-1) as string, held))).toBe(action);
      }
    }
  });

  test("are spelled as people read them", () => {
    expect(keyCaps("mod+shift+z", false)).toEqual(["Ctrl", "Shift", "Z"]);
    expect(keyCaps("mod+shift+z", true)).toEqual(["⌘", "⇧", "Z"]);
    expect(keyCaps("+", false)).toEqual(["+"]);
  });
});
