/** The preview under the pointer: one question at a time, the latest place wins, stale answers are dropped. */

import type { App } from "../state/app";
import type { Point } from "../state/types";

export interface Hover {
  move(point: Point | null): void;
  hide(): void;
}

const STILL = 3; // image pixels (at scale 1) within which the answer stays the same

export function createHover(app: App): Hover {
  const { store, session } = app;
  let wanted: Point | null = null;
  let asked: Point | null = null;
  let running = false;

  /** Only where a click would begin a new object: else it would show something that a click does not do. */
  const allowed = (): boolean => {
    const { tool, scene, pending, drawing, busy } = store.get();
    return tool === "point" && scene.selected === null && !pending && !drawing && !busy;
  };

  async function run(): Promise<void> {
    if (running) return;
    running = true;
    try {
      while (wanted && allowed() && session.segmenter && !isNear(wanted, asked)) {
        const point: Point = wanted;
        asked = point;
        const segmenter = session.segmenter;
        const found = await segmenter.preview(point[0], point[1]);
        if (!wanted || !allowed() || session.segmenter !== segmenter) break;
        if (found) {
          const { rle, box, area } = found;
          store.set({ preview: area > 0 ? { rle, box, area } : null });
        }
        // Let the page paint and take events before the next question.
        await new Promise((resolve) => requestAnimationFrame(resolve));
      }
    } catch {
      store.set({ preview: null }); // a preview that fails is no news: the click that follows says what is wrong
    } finally {
      running = false;
    }
  }

  function isNear(a: Point, b: Point | null): boolean {
    const slack = STILL / Math.min(store.get().view.scale, 1);
    return b !== null && store.get().preview !== null && Math.hypot(a[0] - b[0], a[1] - b[1]) < slack;
  }

  function hide(): void {
    wanted = null;
    asked = null;
    if (store.get().preview) store.set({ preview: null });
  }

  store.watch((state) => [state.scene.selected, state.pending, state.tool, state.imageId].join(), () => {
    if (!allowed()) hide();
  });

  return {
    move(point) {
      if (!point || !allowed()) return hide();
      wanted = point;
      void run();
    },
    hide,
  };
}
