/** Light, dark, or as the system: remembered in this browser. */

import type { AppState, Theme } from "../state/app_state";
import type { Store } from "../state/store";

const KEY = "anysam.theme";
const NEXT: Readonly<Record<Theme, Theme>> = { auto: "light", light: "dark", dark: "auto" };

export function startTheme(store: Store<AppState>): { next(): void } {
  const kept = localStorage.getItem(KEY);
  if (kept === "light" || kept === "dark") store.set({ theme: kept });
  store.watch(
    (state) => state.theme,
    (theme) => {
      if (theme === "auto") delete document.documentElement.dataset["theme"];
      else document.documentElement.dataset["theme"] = theme;
    },
  );
  return {
    next() {
      const theme = NEXT[store.get().theme];
      store.set({ theme });
      if (theme === "auto") localStorage.removeItem(KEY);
      else localStorage.setItem(KEY, theme);
    },
  };
}
