/** Clicks answered by the server until this browser's decoder is there. */

import type { Segmenter } from "./segmenter";

/** `settled` ends when `browser` has taken over, or cannot: then the server goes on, and `reason` says why. */
export function whileStarting(server: Segmenter, browser: Promise<Segmenter>): Segmenter {
  let current = server;
  let failed: string | undefined;
  let closed = false;
  const settled = browser.then(
    (segmenter) => {
      if (closed) return segmenter.close();
      // The server's is left open: what was asked of it is still answered.
      current = segmenter;
    },
    (error: unknown) => {
      failed = error instanceof Error ? error.message : String(error);
    },
  );
  return {
    get mode() {
      return current.mode;
    },
    get reason() {
      return failed ?? current.reason;
    },
    settled,
    predict: (prompt, options) => current.predict(prompt, options),
    preview: (x, y) => current.preview(x, y),
    close() {
      closed = true;
      server.close();
      current.close();
    },
  };
}
