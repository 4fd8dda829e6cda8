/** Key presses anywhere on the page become actions. */

import type { App } from "../state/app";
import { stepRadius } from "../state/brush";
import type { Editing } from "../state/editing";
import { type Finding, openProposals } from "../state/finding";
import type { Projects } from "../state/session";
import { type Action, actionOf, isTyping } from "../state/shortcuts";
import type { Tool } from "../state/types";
import { showHelp } from "./dialogs";
import type { Files } from "./files";
import type { Stage } from "./stage";

export interface Keyboard {
  readonly app: App;
  readonly editing: Editing;
  readonly finding: Finding;
  readonly projects: Projects;
  readonly files: Files;
  readonly stage: Stage;
  readonly focusText: () => void;
  readonly focusCategory: () => void;
}

export function listenToKeys(parts: Keyboard): void {
  const { app, editing, finding, projects, files, stage } = parts;
  const { store } = app;

  const proposing = (): boolean => openProposals(store.get().proposals, store.get().scene.objects).length > 0;

  function stepImage(direction: 1 | -1): void {
    const { images, imageId } = store.get();
    const next = images[images.findIndex((image) => image.id === imageId) + direction];
    if (next) void projects.openImage(next.id);
  }

  function stepObject(direction: 1 | -1): void {
    if (proposing()) return finding.step(direction);
    const { objects, selected } = store.get().scene;
    if (objects.length === 0) return;
    const at = objects.findIndex((object) => object.id === selected);
    const next = at < 0 ? (direction > 0 ? 0 : objects.length - 1) : (at + direction + objects.length) % objects.length;
    editing.select(objects[next]?.id ?? null);
  }

  function withSelected(act: (id: string) => void): void {
    const { selected } = store.get().scene;
    if (selected) act(selected);
  }

  function cancel(): void {
    const { drawing, finding: running, proposals } = store.get();
    if (drawing) store.set({ drawing: null });
    else if (running) finding.cancel();
    else if (proposals && proposing()) finding.discard();
    else editing.done();
  }

  function done(): void {
    const { proposal } = store.get();
    if (proposing() && proposal) finding.keep(proposal);
    else editing.done();
  }

  const setTool = (tool: Tool) => () => store.set({ tool });
  const grow = (direction: 1 | -1) => () => store.set({ radius: stepRadius(store.get().radius, direction) });

  const actions: Readonly<Record<Action, () => void>> = {
    undo: () => editing.undo(),
    redo: () => editing.redo(),
    done,
    cancel,
    "choice-1": () => editing.choose(0),
    "choice-2": () => editing.choose(1),
    "choice-3": () => editing.choose(2),
    "tool-point": setTool("point"),
    "tool-scribble": setTool("scribble"),
    "tool-brush": setTool("brush"),
    "tool-eraser": setTool("eraser"),
    "tool-move": setTool("move"),
    "brush-smaller": grow(-1),
    "brush-larger": grow(1),
    "zoom-in": () => stage.zoom(1.4),
    "zoom-out": () => stage.zoom(1 / 1.4),
    "zoom-fit": () => stage.fit(),
    delete: () => withSelected((id) => editing.remove(id)),
    hide: () => withSelected((id) => editing.toggleHidden(id)),
    "previous-image": () => stepImage(-1),
    "next-image": () => stepImage(1),
    "previous-object": () => stepObject(-1),
    "next-object": () => stepObject(1),
    "keep-all": () => finding.keepAll(),
    everything: () => void finding.everything(),
    find: parts.focusText,
    category: parts.focusCategory,
    open: () => files.pickImages(),
    help: showHelp,
  };

  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || document.querySelector("dialog[open], [popover]:popover-open")) return;
    const action = actionOf(event);
    if (!action) return;
    if (isTyping(event.target)) {
      // A field keeps its keys; Escape leaves it.
      if (action === "cancel") stage.focus();
      return;
    }
    // Enter and Space press the button that has the focus.
    if (event.key === "Enter" && event.target instanceof HTMLElement && event.target.closest("button, a, [role=option]")) return;
    event.preventDefault();
    actions[action]();
  });
}
