/** Small values kept in the browser: IndexedDB, or memory where the browser forbids it (`durable` says which). */

export interface Shelf<T> {
  readonly durable: boolean;
  all(): Promise<Map<string, T>>;
  get(key: string): Promise<T | undefined>;
  put(entries: ReadonlyMap<string, T>): Promise<void>;
  remove(keys: readonly string[]): Promise<void>;
}

const DATABASE = "anysam";
const SHELVES = ["outbox", "thumbnails"] as const;

export function memoryShelf<T>(): Shelf<T> {
  const values = new Map<string, T>();
  return {
    durable: false,
    all: async () => new Map(values),
    get: async (key) => values.get(key),
    put: async (entries) => entries.forEach((value, key) => values.set(key, value)),
    remove: async (keys) => keys.forEach((key) => values.delete(key)),
  };
}

export async function openShelf<T>(name: (typeof SHELVES)[number]): Promise<Shelf<T>> {
  let database: IDBDatabase;
  try {
    database = await openDatabase();
  } catch {
    return memoryShelf<T>(); // private windows and blocked storage: the caller shows that nothing is kept
  }
  const run = <R>(mode: IDBTransactionMode, act: (store: IDBObjectStore) => IDBRequest<R> | void): Promise<R> =>
    new Promise((resolve, reject) => {
      const transaction = database.transaction(name, mode);
      const request = act(transaction.objectStore(name));
      transaction.oncomplete = () => resolve(request?.result as R);
      transaction.onabort = transaction.onerror = () => reject(transaction.error);
    });
  return {
    durable: true,
    async all() {
      const keys = await run<IDBValidKey[]>("readonly", (store) => store.getAllKeys());
      const values = await run<T[]>("readonly", (store) => store.getAll());
      return new Map(keys.map((key, i) => [String(key), values[i] as T]));
    },
    get: (key) => run<T | undefined>("readonly", (store) => store.get(key)),
    put: (entries) => run("readwrite", (store) => entries.forEach((value, key) => store.put(value, key))),
    remove: (keys) => run("readwrite", (store) => keys.forEach((key) => store.delete(key))),
  };
}

function openDatabase(): Promise<IDBDatabase> {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(DATABASE, 1);
    request.onupgradeneeded = () => SHELVES.forEach((name) => request.result.createObjectStore(name));
    request.onsuccess = () => resolve(request.result);
    request.onerror = request.onblocked = () => reject(request.error);
  });
}
