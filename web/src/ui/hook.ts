/** `window.anysam`: what the page shows as plain values, for browser tests and the curious. Reads, changes nothing. */

import type { App } from "../state/app";
import { openProposals } from "../state/finding";
import { toStage } from "../state/view";
import { colourFor } from "./marks";

export function installHook(app: App, stage: HTMLElement): void {
  const { store } = app;
  const hook = {
    state(): Record<string, unknown> {
      const state = store.get();
      const { scene } = state;
      const kept = state.info?.projects ?? false;
      return {
        ready: state.connection === "ready",
        connection: state.connection,
        persistent: kept,
        projectId: state.projectId,
        project: state.projects.find((project) => project.id === state.projectId) ?? null,
        imageId: state.imageId,
        imageName: state.images.find((image) => image.id === state.imageId)?.name ?? null,
        engineImage: app.session.engineImage,
        size: state.size,
        mode: state.mode,
        reason: state.modeReason,
        busy: state.busy,
        tool: state.tool,
        view: state.view,
        selected: scene.selected,
        predicting: state.pending !== null,
        canUndo: scene.past.length > 0,
        canRedo: scene.future.length > 0,
        objects: scene.objects.map((object) => ({
          id: object.id,
          categoryId: object.categoryId,
          category: state.categories.find((category) => category.id === object.categoryId)?.name ?? null,
          colour: colourFor(state, object.id, object.categoryId),
          area: object.area,
          box: object.box,
          iou: object.iou,
          visible: !state.hidden.has(object.id),
          source: object.source,
          label: object.label,
          prompt: object.prompt,
          choice: object.choice,
          choices: object.choices.length,
          segmentation: object.rle,
        })),
        proposals: state.proposals ? openProposals(state.proposals, scene.objects).length : null,
        everything: { running: state.finding !== null, done: state.finding?.done ?? null },
        granularity: state.granularity,
        save: kept ? state.save : { state: "memory", pending: 0 },
        preview: state.preview ? { area: state.preview.area } : null,
        lastClickMs: state.lastClickMs,
        images: state.images.map(({ id, name, size }) => ({ id, name, size })),
        categories: state.categories,
        theme: state.theme,
      };
    },
    toScreen(x: number, y: number): [number, number] {
      const frame = stage.getBoundingClientRect();
      const [sx, sy] = toStage(store.get().view, [x, y]);
      return [frame.left + sx, frame.top + sy];
    },
  };
  Object.assign(window, { anysam: Object.freeze(hook) });
  store.watch(
    (state) => state.connection,
    (connection) => {
      if (connection !== "connecting") requestAnimationFrame(() => (document.documentElement.dataset["ready"] = "true"));
    },
  );
}
