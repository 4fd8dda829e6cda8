/** A value that changes by replacement, and who wants to know. Immutable inside; no knowledge of what it holds. */

export interface Store<S> {
  get(): S;
  set(change: Partial<S> | ((state: S) => Partial<S>)): void;
  /** Calls `listener` with what `select` picks, now and whenever that is another value (by Object.is, or `same`). */
  watch<T>(select: (state: S) => T, listener: (value: T) => void, same?: (a: T, b: T) => boolean): () => void;
}

export function createStore<S extends object>(initial: S): Store<S> {
  let state = initial;
  const listeners = new Set<() => void>();
  let depth = 0;
  let dirty = false;

  // A listener may set again; the rest is told once, of the newest value, in order.
  function notify(): void {
    dirty = true;
    if (depth > 0) return;
    depth += 1;
    try {
      while (dirty) {
        dirty = false;
        for (const listener of [...listeners]) listener();
      }
    } finally {
      depth -= 1;
    }
  }

  return {
    get: () => state,
    set(change) {
      const patch = typeof change === "function" ? change(state) : change;
      const changed = (Object.keys(patch) as (keyof S)[]).some((key) => !Object.is(state[key], patch[key]));
      if (!changed) return;
      state = { ...state, ...patch };
      notify();
    },
    watch(select, listener, same = Object.is) {
      let last = select(state);
      const check = (): void => {
        const next = select(state);
        if (same(last, next)) return;
        last = next;
        listener(next);
      };
      listeners.add(check);
      listener(last);
      return () => listeners.delete(check);
    },
  };
}

/** For `watch`: arrays or tuples with the same members. */
export function sameMembers(a: readonly unknown[], b: readonly unknown[]): boolean {
  return a.length === b.length && a.every((value, i) => Object.is(value, b[i]));
}
