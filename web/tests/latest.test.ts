import { expect, test } from "vitest";
import { latestOnly } from "../src/candidates";

test("of the calls that wait only the latest runs", async () => {
  const hover = latestOnly<number>();
  const ran: number[] = [];
  const release: (() => void)[] = [];
  const job = (n: number) => async (): Promise<number> => {
    ran.push(n);
    await new Promise<void>((resolve) => release.push(resolve));
    return n;
  };
  const answers = [hover(job(1)), hover(job(2)), hover(job(3))];
  expect(await answers[1]).toBeNull();
  release.shift()?.();
  expect(await answers[0]).toBe(1);
  await expect.poll(() => ran.length).toBe(2);
  release.shift()?.();
  expect(await answers[2]).toBe(3);
  expect(ran).toEqual([1, 3]);
});

test("a failure does not stop the next one", async () => {
  const hover = latestOnly<number>();
  const failed = hover(() => Promise.reject(new Error("no")));
  const next = hover(() => Promise.resolve(2));
  await expect(failed).rejects.toThrow("no");
  expect(await next).toBe(2);
});
