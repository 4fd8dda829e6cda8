import { expect, test } from "vitest";
import { readEvents } from "../src/events";

function stream(text: string, size: number): ReadableStream<Uint8Array> {
  const bytes = new TextEncoder().encode(text);
  let at = 0;
  return new ReadableStream({
    pull(controller) {
      if (at >= bytes.length) return controller.close();
      controller.enqueue(bytes.slice(at, at + size));
      at += size;
    },
  });
}

const TEXT = 'event: progress\ndata: {"done": 0.5}\n\n: still here\n\nevent: result\r\ndata: {"é":\r\ndata: 1}\r\n\r\ndata: x\n\n';

test.each([1, 2, 7, 1000])("events come whole, however the bytes come: %i at once", async (size) => {
  const events = [];
  for await (const event of readEvents(stream(TEXT, size))) events.push(event);
  expect(events).toEqual([
    { name: "progress", data: '{"done": 0.5}' },
    { name: "result", data: '{"é":\n1}' },
    { name: "message", data: "x" },
  ]);
});

test("whoever stops reading ends the connection", async () => {
  let cancelled = false;
  const body = new ReadableStream<Uint8Array>({
    pull: (controller) => controller.enqueue(new TextEncoder().encode("data: 1\n\n")),
    cancel: () => void (cancelled = true),
  });
  for await (const event of readEvents(body)) {
    expect(event.data).toBe("1");
    break;
  }
  expect(cancelled).toBe(true);
});
