/** Pointer events on the stage become gestures in stage pixels: tap, drag, pan, pinch. Knows no tools and no image. */

import type { Point } from "../state/types";

export type Button = "left" | "right";

export interface Press {
  readonly at: Point;
  readonly button: Button;
  readonly alt: boolean;
  readonly shift: boolean;
  readonly mod: boolean;
  readonly touch: boolean;
}

export interface Gestures {
  /** Whether a left drag pans here (the tool, the space bar). */
  pans(): boolean;
  /** Whether a press draws from its first moment on (brush); else it is a tap until it has moved. */
  drawsAtOnce(): boolean;
  tap(press: Press): void;
  longPress(press: Press): void;
  dragStart(press: Press): void;
  dragMove(at: Point): void;
  dragEnd(press: Press, at: Point): void;
  dragCancel(): void;
  pan(dx: number, dy: number): void;
  pinch(before: readonly [Point, Point], after: readonly [Point, Point]): void;
  wheel(at: Point, factor: number): void;
  hover(at: Point | null): void;
}

const SLACK = 4; // CSS pixels that a click may move
const TOUCH_SLACK = 10;
const LONG_PRESS = 500; // milliseconds

export function listen(target: HTMLElement, to: Gestures): void {
  const fingers = new Map<number, Point>();
  let press: Press | null = null; // what may become a tap or a drag
  let mode: "none" | "waiting" | "drag" | "pan" | "pinch" | "over" = "none";
  let last: Point = [0, 0];
  let hold: ReturnType<typeof setTimeout> | undefined;

  const place = (event: MouseEvent): Point => {
    const frame = target.getBoundingClientRect();
    return [event.clientX - frame.left, event.clientY - frame.top];
  };

  function firstTwo(): [Point, Point] | null {
    const [first, second] = [...fingers.values()];
    return first && second ? [first, second] : null;
  }

  function startDrag(): void {
    clearTimeout(hold);
    mode = "drag";
    to.dragStart(press as Press);
  }

  target.addEventListener("pointerdown", (event) => {
    const at = place(event);
    const touch = event.pointerType === "touch";
    if (touch) fingers.set(event.pointerId, at);
    target.setPointerCapture(event.pointerId);
    if (fingers.size === 2) {
      clearTimeout(hold);
      if (mode === "drag") to.dragCancel();
      mode = "pinch";
      return;
    }
    if (fingers.size > 2 || (mode !== "none" && mode !== "over")) return;
    const middle = event.button === 1;
    if (middle) event.preventDefault();
    press = {
      at,
      button: event.button === 2 || (event.ctrlKey && event.button === 0 && isMac()) ? "right" : "left",
      alt: event.altKey,
      shift: event.shiftKey,
      mod: event.metaKey || (event.ctrlKey && !isMac()),
      touch,
    };
    last = at;
    to.hover(touch ? null : at);
    if (middle || to.pans()) mode = "pan";
    else if (to.drawsAtOnce() && !touch) startDrag();
    else {
      mode = "waiting";
      if (touch) {
        hold = setTimeout(() => {
          mode = "over";
          to.longPress(press as Press);
        }, LONG_PRESS);
      }
    }
  });

  target.addEventListener("pointermove", (event) => {
    const at = place(event);
    if (mode === "pinch") {
      if (!fingers.has(event.pointerId)) return;
      const before = firstTwo();
      fingers.set(event.pointerId, at);
      const after = firstTwo();
      // Of two fingers one may have gone already.
      if (before && after) to.pinch(before, after);
      return;
    }
    if (fingers.has(event.pointerId)) fingers.set(event.pointerId, at);
    if (mode === "none" || mode === "over") {
      if (event.pointerType !== "touch") to.hover(at);
      return;
    }
    if (event.pointerType !== "touch") to.hover(at);
    if (mode === "pan") {
      to.pan(at[0] - last[0], at[1] - last[1]);
      last = at;
      return;
    }
    if (mode === "waiting" && press) {
      const slack = press.touch ? TOUCH_SLACK : SLACK;
      if (Math.hypot(at[0] - press.at[0], at[1] - press.at[1]) <= slack) return;
      startDrag();
    }
    // Fast strokes come in few events with their points inside.
    const all = event.getCoalescedEvents?.() ?? [];
    for (const each of all.length > 0 ? all : [event]) to.dragMove(place(each));
  });

  function end(event: PointerEvent, cancelled: boolean): void {
    const at = place(event);
    clearTimeout(hold);
    fingers.delete(event.pointerId);
    if (mode === "pinch") {
      if (fingers.size === 0) mode = "none";
      return;
    }
    const was = mode;
    mode = "none";
    if (!press) return;
    if (was === "drag") {
      if (cancelled) to.dragCancel();
      else to.dragEnd(press, at);
    } else if (was === "pan" && !cancelled && to.pans() && Math.hypot(at[0] - press.at[0], at[1] - press.at[1]) <= SLACK) {
      to.tap(press);
    } else if (was === "waiting" && !cancelled) to.tap(press);
    press = null;
  }

  target.addEventListener("pointerup", (event) => end(event, false));
  target.addEventListener("pointercancel", (event) => end(event, true));
  target.addEventListener("pointerleave", () => mode === "none" && to.hover(null));
  target.addEventListener("contextmenu", (event) => event.preventDefault());
  target.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      const lines = event.deltaMode === 1 ? 16 : 1;
      if (event.shiftKey && !event.ctrlKey) {
        to.pan(-(event.deltaX || event.deltaY) * lines, 0);
        return;
      }
      // A trackpad's pinch comes as a wheel with ctrlKey and small steps.
      to.wheel(place(event), Math.exp(-event.deltaY * lines * (event.ctrlKey ? 0.01 : 0.0016)));
    },
    { passive: false },
  );
}

function isMac(): boolean {
  return /mac/i.test(navigator.platform);
}
