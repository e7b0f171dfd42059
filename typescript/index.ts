// A typed client of Cutaway's HTTP service: paths, options and answers are those of schema.d.ts, which is generated.

import createClient from "openapi-fetch";
import type { components, paths } from "./schema";

export type Removed = components["schemas"]["Removed"];
export type Failure = components["schemas"]["Failure"];
export type Detected = components["schemas"]["Detected"];

/** A client of the service at an address such as "http://localhost:55433". */
export function cutaway(baseUrl: string, apiKey?: string) {
  return createClient<paths>({ baseUrl, headers: apiKey ? { "X-API-Key": apiKey } : {} });
}

/** Multipart, which OpenAPI clients do not build themselves. */
export function form(fields: Record<string, Blob | string | number | boolean | undefined>): FormData {
  const data = new FormData();
  for (const [name, value] of Object.entries(fields)) {
    if (value instanceof Blob) data.append(name, value);
    else if (value !== undefined) data.append(name, String(value));
  }
  return data;
}

export class CutawayError extends Error {
  constructor(readonly failure: Failure, readonly status: number) {
    super(failure.detail);
  }
}

/** The picture without its background, as a file. Options are those of the service's form. */
export async function removeBackground(
  client: ReturnType<typeof cutaway>,
  image: Blob,
  options: Record<string, string | number | boolean> = {},
  signal?: AbortSignal,
): Promise<Blob> {
  const { data, error, response } = await client.POST("/api/background-removal/remove", {
    body: { image: "", smoothing: true, return_base64: false },
    bodySerializer: () => form({ image, ...options }),
    parseAs: "blob",
    signal,
  });
  if (error) throw new CutawayError(error as Failure, response.status);
  return data as unknown as Blob;
}
