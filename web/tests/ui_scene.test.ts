import { describe, expect, test } from "vitest";
import * as scenes from "../src/state/scene";
import type { SceneObject } from "../src/state/types";

const object = (id: string, area = 1): SceneObject => ({
  id,
  categoryId: null,
  rle: { size: [2, 2], counts: "04" },
  area,
  box: [0, 0, 2, 2],
  iou: 0.5,
  label: null,
  source: "click",
  prompt: null,
  choices: [],
  choice: 0,
});
const ids = (scene: scenes.Scene): string[] => scene.objects.map(({ id }) => id);

describe("undo and redo", () => {
  test("go back through every step and forth again to the very same objects", () => {
    const seen = [scenes.emptyScene];
    const steps: ((scene: scenes.Scene) => scenes.Scene)[] = [
      (scene) => scenes.commit(scene, "Click", [object("a")], [], "a"),
      (scene) => scenes.commit(scene, "Click", [object("a", 7)], [], "a"),
      (scene) => scenes.commit(scene, "Keep all", [object("b"), object("c")], [], null),
      (scene) => scenes.commit(scene, "Delete", [], ["a", "c"]),
      (scene) => scenes.commit(scene, "Click", [object("d")], [], "d"),
    ];
    for (const step of steps) seen.push(step(seen.at(-1) as scenes.Scene));
    let scene = seen.at(-1) as scenes.Scene;
    for (let i = seen.length - 2; i >= 0; i -= 1) {
      scene = scenes.undo(scene);
      expect(scene.objects).toEqual(seen[i]?.objects);
    }
    expect(scene.past).toHaveLength(0);
    for (let i = 1; i < seen.length; i += 1) {
      scene = scenes.redo(scene);
      expect(scene.objects).toEqual(seen[i]?.objects);
      expect(scene.selected).toBe(seen[i]?.selected);
    }
  });

  test("at the ends change nothing", () => {
    expect(scenes.undo(scenes.emptyScene)).toBe(scenes.emptyScene);
    expect(scenes.redo(scenes.emptyScene)).toBe(scenes.emptyScene);
  });

  test("a new step forgets what could be done again", () => {
    let scene = scenes.commit(scenes.emptyScene, "Click", [object("a")], [], "a");
    scene = scenes.commit(scenes.undo(scene), "Click", [object("b")], [], "b");
    expect(scene.future).toEqual([]);
    expect(ids(scene)).toEqual(["b"]);
  });

  test("a deleted object comes back at its place and selected as it was", () => {
    let scene = scenes.commit(scenes.emptyScene, "Keep all", [object("a"), object("b"), object("c")], [], "b");
    scene = scenes.commit(scene, "Delete", [], ["b"]);
    expect(scene.selected).toBeNull();
    scene = scenes.undo(scene);
    expect(ids(scene)).toEqual(["a", "b", "c"]);
    expect(scene.selected).toBe("b");
  });

  test("a step that changes nothing is none", () => {
    const scene = scenes.commit(scenes.emptyScene, "Click", [object("a")], [], "a");
    expect(scenes.commit(scene, "Category", [scene.objects[0] as SceneObject])).toBe(scene);
    expect(scenes.commit(scene, "Delete", [], ["unknown"])).toBe(scene);
  });

  test("keep a bounded number of steps", () => {
    let scene = scenes.emptyScene;
    for (let i = 0; i < scenes.MOST_STEPS + 20; i += 1) scene = scenes.commit(scene, "Click", [object("a", i)]);
    expect(scene.past).toHaveLength(scenes.MOST_STEPS);
    expect(scenes.undo(scene).objects[0]?.area).toBe(scenes.MOST_STEPS + 18);
  });
});

describe("difference", () => {
  test("names what is new, changed and gone", () => {
    const [a, b, c] = [object("a"), object("b"), object("c")];
    const changed = { ...b, area: 9 };
    expect(scenes.difference([a, b], [changed, c])).toEqual({ put: [changed, c], remove: ["a"] });
    expect(scenes.difference([a], [a])).toEqual({ put: [], remove: [] });
  });
});
