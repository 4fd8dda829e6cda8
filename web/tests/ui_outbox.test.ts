import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { ApiError } from "../src/problems";
import type { AnnotationBody } from "../src/state/backend";
import { type Entry, openOutbox, type SaveState, type Send } from "../src/state/outbox";
import { withPending } from "../src/state/saving";
import { memoryShelf } from "../src/state/storage";

const body = (counts = "04"): AnnotationBody => ({
  segmentation: { size: [2, 2], counts },
  category_id: null,
  prompt: null,
  predicted_iou: null,
  label: null,
  source: "click",
});
const entry = (id: string, image = "i", what: AnnotationBody | null = body()) => ({ project: "p", image, id, body: what });

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

async function start(send: Send, shelf = memoryShelf<Entry>()) {
  const states: SaveState[] = [];
  const outbox = await openOutbox(shelf, send, (state) => states.push(state));
  return { outbox, shelf, states, last: () => states.at(-1) as SaveState };
}

describe("outbox", () => {
  test("sends what comes together in one batch and keeps nothing that is acknowledged", async () => {
    const send = vi.fn<Send>(async () => undefined);
    const { outbox, shelf, last } = await start(send);
    outbox.add([entry("a")]);
    outbox.add([entry("b"), entry("c", "i", null)]);
    expect(last()).toMatchObject({ state: "saving", pending: 3 });
    expect((await shelf.all()).size).toBe(3);
    await vi.advanceTimersByTimeAsync(500);
    expect(send).toHaveBeenCalledTimes(1);
    expect(send.mock.calls[0]?.[2].map(({ id }) => id)).toEqual(["a", "b"]);
    expect(send.mock.calls[0]?.[3]).toEqual(["c"]);
    expect(last()).toMatchObject({ state: "saved", pending: 0 });
    expect((await shelf.all()).size).toBe(0);
  });

  test("keeps, says so and tries again while the server is away", async () => {
    let away = true;
    const send = vi.fn<Send>(async () => {
      if (away) throw new ApiError("The server does not answer.", 0);
    });
    const { outbox, shelf, last } = await start(send);
    outbox.add([entry("a")]);
    await vi.advanceTimersByTimeAsync(4000);
    expect(last()).toMatchObject({ state: "waiting", pending: 1, error: "The server does not answer." });
    expect(send.mock.calls.length).toBeGreaterThan(1);
    outbox.add([entry("b")]);
    expect((await shelf.all()).size).toBe(2);
    away = false;
    await vi.advanceTimersByTimeAsync(30_000);
    expect(last()).toMatchObject({ state: "saved", pending: 0, error: null });
    expect((await shelf.all()).size).toBe(0);
  });

  test("what a page could not send, the next one sends", async () => {
    const shelf = memoryShelf<Entry>();
    const first = await start(() => Promise.reject(new ApiError("away", 0)), shelf);
    first.outbox.add([entry("a")]);
    await vi.advanceTimersByTimeAsync(300);
    vi.clearAllTimers();
    const send = vi.fn<Send>(async () => undefined);
    const second = await start(send, shelf);
    expect(second.outbox.pendingFor("p", "i").map(({ id }) => id)).toEqual(["a"]);
    await vi.advanceTimersByTimeAsync(300);
    expect(send).toHaveBeenCalledTimes(1);
    expect(second.last()).toMatchObject({ state: "saved", pending: 0 });
  });

  test("an acknowledgement of an older change does not count for the newer one", async () => {
    let release: () => void = () => undefined;
    const send = vi.fn<Send>(() => new Promise((resolve) => (release = resolve)));
    const { outbox, last } = await start(send);
    outbox.add([entry("a", "i", body("04"))]);
    await vi.advanceTimersByTimeAsync(200);
    outbox.add([entry("a", "i", body("13"))]);
    release();
    await vi.advanceTimersByTimeAsync(200);
    expect(last().pending).toBe(1);
    release();
    await vi.advanceTimersByTimeAsync(200);
    expect(send.mock.calls[1]?.[2][0]?.segmentation.counts).toBe("13");
    expect(last()).toMatchObject({ state: "saved", pending: 0 });
  });

  test("one refused annotation neither holds up the others nor is lost", async () => {
    const saved: string[] = [];
    const send: Send = async (_project, _image, put) => {
      if (put.some(({ id }) => id === "bad")) throw new ApiError("no such category", 422);
      saved.push(...put.map(({ id }) => id));
    };
    const { outbox, shelf, last } = await start(send);
    outbox.add([entry("a"), entry("bad"), entry("c")]);
    await vi.advanceTimersByTimeAsync(500);
    expect(saved).toEqual(["a", "c"]);
    expect(last()).toMatchObject({ state: "failed", pending: 1, error: "no such category" });
    expect([...(await shelf.all()).values()].map(({ id }) => id)).toEqual(["bad"]);
  });

  test("images are not mixed in a batch, and long ones are cut", async () => {
    const send = vi.fn<Send>(async () => undefined);
    const { outbox } = await start(send);
    outbox.add([...Array.from({ length: 150 }, (_, i) => entry(`a${i}`)), entry("b", "j")]);
    await vi.advanceTimersByTimeAsync(500);
    expect(send.mock.calls.map(([, image, put]) => [image, put.length])).toEqual([
      ["i", 100],
      ["i", 50],
      ["j", 1],
    ]);
  });

  test("an image that is deleted on purpose takes what waits with it", async () => {
    const { outbox, shelf, last } = await start(() => Promise.reject(new ApiError("away", 0)));
    outbox.add([entry("a"), entry("b", "j")]);
    outbox.forget("p", "i");
    expect(last().pending).toBe(1);
    expect(outbox.pendingFor("p", "i")).toEqual([]);
    expect(outbox.pendingFor("p", "j")).toHaveLength(1);
    await vi.advanceTimersByTimeAsync(10);
    expect((await shelf.all()).size).toBe(1);
  });
});

describe("what waits lies over what the server says", () => {
  test("new, changed and deleted annotations", () => {
    const known = (id: string) => ({ ...body(), id, area: 4, box: [0, 0, 2, 2] as const, prompt: null });
    const pending: Entry[] = [
      { ...entry("a", "i", null), stamp: "1" },
      { ...entry("b", "i", { ...body("13"), label: "newer" }), stamp: "2" },
      { ...entry("c"), stamp: "3" },
    ];
    const objects = withPending([known("a"), known("b")], pending);
    expect(objects.map(({ id, label, area }) => [id, label, area])).toEqual([
      ["b", "newer", 3],
      ["c", null, 4],
    ]);
  });
});
