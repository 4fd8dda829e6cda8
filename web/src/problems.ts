/** What the server refuses, in its own words (RFC 9457). */

/** status 0: no answer at all. retryAfter: seconds, when the server names them. */
export class ApiError extends Error {
  constructor(
    readonly detail: string,
    readonly status: number,
    readonly retryAfter: number | null = null,
    readonly requestId: string | null = null,
  ) {
    super(detail);
    this.name = "ApiError";
  }
}

/** The error that an answer of status 400 or more says. */
export async function readProblem(response: Response): Promise<ApiError> {
  const after = Number(response.headers.get("Retry-After") ?? Number.NaN);
  let detail = "";
  try {
    detail = String(((await response.json()) as { detail?: unknown }).detail ?? "");
  } catch {
    // A proxy's answer, say: the status is all there is.
  }
  return new ApiError(
    detail || `The server answered ${response.status} ${response.statusText}`.trim() + ".",
    response.status,
    Number.isFinite(after) ? after : null,
    response.headers.get("X-Request-Id"),
  );
}
