/** The images that are open in the model: a few stay so that going back is instant, the others are closed. */

import type { App, Segmenter } from "./app";

const MOST_OPEN = 3;

interface Opened {
  readonly engineImage: string;
  readonly segmenter: Segmenter;
}

export interface OpenedImages {
  /** Open an image, or find it open. `give` hands it to the engine and says the engine's id. */
  open(
    image: string,
    give: () => Promise<string>,
    onProgress: (what: string, done: number) => void,
  ): Promise<Opened>;
  close(image: string): void;
  closeAll(): void;
}

export function createOpenedImages(app: App): OpenedImages {
  const opened = new Map<string, Opened>(); // oldest use first

  function close(image: string): void {
    opened.get(image)?.segmenter.close();
    opened.delete(image);
  }

  return {
    async open(image, give, onProgress) {
      let found = opened.get(image);
      if (!found) {
        const engineImage = await give();
        found = { engineImage, segmenter: await app.openSegmenter(engineImage, onProgress) };
      }
      opened.delete(image);
      opened.set(image, found);
      for (const old of [...opened.keys()].slice(0, -MOST_OPEN)) close(old);
      return found;
    },
    close,
    closeAll: () => [...opened.keys()].forEach(close),
  };
}
