/** Requests to the server: the token, waiting when it is busy, errors as ApiError. Knows no route. */

import { ApiError, readProblem } from "./problems";

export interface Connection {
  /** Where the server is; "" is where the page came from. */
  readonly base: string;
  token: string | null;
}

export interface Call {
  readonly method?: "GET" | "POST" | "PUT" | "PATCH" | "DELETE";
  readonly json?: unknown;
  readonly body?: BodyInit;
  readonly headers?: Record<string, string>;
  readonly signal?: AbortSignal | undefined;
}

// A full queue is over in seconds; after that it is better to say so.
const MOST_TRIES = 5;
const LONGEST_WAIT_SECONDS = 10;

/** The answer to a call. Raises ApiError, and AbortError when the signal says so. */
export async function request(connection: Connection, path: string, call: Call = {}): Promise<Response> {
  const headers = new Headers(call.headers);
  if (connection.token) headers.set("Authorization", `Bearer ${connection.token}`);
  if (call.json !== undefined) headers.set("Content-Type", "application/json");
  const body = call.json === undefined ? call.body : JSON.stringify(call.json);
  for (let attempt = 1; ; attempt += 1) {
    const response = await send(connection.base + path, { ...init(call), headers, ...(body === undefined ? {} : { body }) });
    if (response.ok) return response;
    const error = await readProblem(response);
    const wait = error.retryAfter;
    if (response.status !== 503 || wait === null || wait > LONGEST_WAIT_SECONDS || attempt >= MOST_TRIES) throw error;
    await pause(wait * 1000, call.signal);
  }
}

function init(call: Call): RequestInit {
  return { method: call.method ?? "GET", ...(call.signal ? { signal: call.signal } : {}) };
}

async function send(address: string, options: RequestInit): Promise<Response> {
  try {
    return await fetch(address, options);
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new ApiError("The server does not answer. Is it still running?", 0);
  }
}

function pause(milliseconds: number, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve, reject) => {
    const stop = (): void => {
      clearTimeout(timer);
      reject(signal?.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, milliseconds);
    if (signal?.aborted) stop();
    else signal?.addEventListener("abort", stop, { once: true });
  });
}
