// The service's answers, and its errors in words for people.

const WORDS = {
  INVALID_FORMAT: "That is not a picture this server reads. Use a JPEG, PNG, WebP or BMP file.",
  FILE_TOO_LARGE: "The file is too large: 10 MB at most. Save it smaller and try again.",
  RESOLUTION_TOO_LARGE: "The picture has too many pixels: 7680 × 4320 at most.",
  TOO_MANY_PIXELS: "The picture has too many pixels: 50 million at most.",
  RESOLUTION_TOO_SMALL: "The picture is too small: both sides need at least 64 pixels.",
  IMAGE_BOMB: "The file would grow enormously when opened, so the server refuses it.",
  CORRUPT_IMAGE: "The file is damaged or was cut off. Try to save or send it again.",
  NO_PERSON_DETECTED: "No person was found. Choose “Whatever it shows”, or a picture with visible faces and good light.",
  OVERLOADED: "The server has a lot to do. Try again in a moment.",
  PROCESSING_TIMEOUT: "The picture took too long. Try a smaller one.",
  UNAVAILABLE: "The models are not there right now. Try again in a moment.",
  UNAUTHORIZED: "This server wants an API key.",
  OFFLINE: "The server cannot be reached. Check that it still runs.",
};

export class ServiceError extends Error {
  constructor(code, detail, retryAfterS) {
    const wait = retryAfterS ? ` Try again in ${retryAfterS} s.` : "";
    super(code === "RATE_LIMIT_EXCEEDED" ? `Too many pictures at once.${wait}` : WORDS[code] ?? detail);
    this.code = code;
    this.retryAfterS = retryAfterS;
  }
}

async function post(path, fields, signal) {
  const body = new FormData();
  for (const [name, value] of Object.entries(fields)) {
    if (value instanceof Blob) body.append(name, value, value.name ?? "picture.png");
    else if (value !== undefined && value !== null) body.append(name, String(value));
  }
  let response;
  try {
    response = await fetch(path, { method: "POST", body, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServiceError("OFFLINE", "");
  }
  if (response.ok) return response;
  const form = await response.json().catch(() => ({}));
  const entry = form.error ?? { code: form.error_code ?? "UNKNOWN", message: form.detail ?? `The server answers ${response.status}.` };
  throw new ServiceError(entry.code, entry.message, Number(response.headers.get("Retry-After")) || undefined);
}

/** The cut-out of a picture: a PNG with alpha, what was taken as the subject, and milliseconds. */
export async function cut(file, options, signal) {
  const response = await post("/api/background-removal/remove", { image: file, smoothing: false, ...options }, signal);
  return {
    blob: await response.blob(),
    subject: response.headers.get("X-Subject"),
    people: Number(response.headers.get("X-People")),
    warnings: (response.headers.get("X-Warnings") ?? "").split(",").filter(Boolean),
    elapsedMs: Number(response.headers.get("X-Processing-Time-Ms")),
  };
}

/** The people of a picture with outlines. */
export async function detect(file, signal) {
  return (await post("/api/person-detection/detect", { image: file, outlines: true }, signal)).json();
}

export async function health() {
  try {
    const response = await fetch("/api/background-removal/health");
    return response.ok ? await response.json() : { status: "unhealthy" };
  } catch {
    return { status: "unreachable" };
  }
}
