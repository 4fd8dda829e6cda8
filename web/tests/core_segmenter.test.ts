import { expect, test, vi } from "vitest";
import type { Api } from "../src/api";
import { openSegmenter, type Candidate, type Segmenter } from "../src/segmenter";
import { whileStarting } from "../src/starting_segmenter";

function plain(mode: "browser" | "server", iou: number): Segmenter & { closed: boolean } {
  const answer = [{ iou } as Candidate];
  return {
    mode,
    reason: mode === "server" ? "not yet" : undefined,
    closed: false,
    predict: async () => answer,
    preview: async () => answer[0] as Candidate,
    close() {
      this.closed = true;
    },
  };
}

const iouOf = async (segmenter: Segmenter): Promise<number | undefined> => (await segmenter.predict({ points: [[1, 2]] }))[0]?.iou;

test("the server answers until the browser can", async () => {
  const [server, browser] = [plain("server", 0.1), plain("browser", 0.2)];
  let start: (segmenter: Segmenter) => void = () => undefined;
  const segmenter = whileStarting(server, new Promise((resolve) => (start = resolve)));
  expect([segmenter.mode, segmenter.reason, await iouOf(segmenter)]).toEqual(["server", "not yet", 0.1]);
  start(browser);
  await segmenter.settled;
  expect([segmenter.mode, segmenter.reason, await iouOf(segmenter)]).toEqual(["browser", undefined, 0.2]);
  expect(server.closed).toBe(false);
  segmenter.close();
  expect([server.closed, browser.closed]).toEqual([true, true]);
});

test("a decoder that fails leaves the server answering, and says why", async () => {
  const segmenter = whileStarting(plain("server", 0.1), Promise.reject(new Error("no memory")));
  await segmenter.settled;
  expect([segmenter.mode, segmenter.reason, await iouOf(segmenter)]).toEqual(["server", "no memory", 0.1]);
});

test("a decoder that comes after the image was closed is let go", async () => {
  const browser = plain("browser", 0.2);
  const segmenter = whileStarting(plain("server", 0.1), Promise.resolve(browser));
  segmenter.close();
  await segmenter.settled;
  expect(browser.closed).toBe(true);
});

test("an image can be clicked while the server still makes its decoder", async () => {
  vi.useFakeTimers();
  const api = {
    decoderInfo: () => new Promise(() => undefined),
    imageState: async () => ({ id: "a", size: [3, 4], state: "ready" }),
    predict: async () => ({
      size: [3, 4],
      results: [{ masks: [{ segmentation: { size: [3, 4], counts: "<" }, area: 0, box: [0, 0, 0, 0], predicted_iou: 0.5 }], best: 0 }],
    }),
  } as unknown as Api;
  const opening = openSegmenter(api, "a", () => undefined);
  await vi.advanceTimersByTimeAsync(10_000);
  const segmenter = await opening;
  vi.useRealTimers();
  expect(segmenter.mode).toBe("server");
  expect(segmenter.reason).toContain("still being made");
  expect(await iouOf(segmenter)).toBe(0.5);
});
