import { useCallback, useEffect, useRef, useState } from "react";
import { CutawayError, cutaway, removeBackground } from "./index";

const client = cutaway("http://localhost:55433");

/** A React hook: `remove(file)` cuts a picture out; the last one asked for is the one shown. */
export function useBackgroundRemoval(options: Record<string, string | number | boolean> = {}) {
  const [url, setUrl] = useState<string>();
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<CutawayError>();
  const running = useRef<AbortController>(null);

  useEffect(() => () => { running.current?.abort(); }, []);
  useEffect(() => () => { if (url) URL.revokeObjectURL(url); }, [url]);

  const remove = useCallback(async (image: Blob) => {
    running.current?.abort();
    const mine = (running.current = new AbortController());
    setBusy(true);
    setError(undefined);
    try {
      setUrl(URL.createObjectURL(await removeBackground(client, image, options, mine.signal)));
    } catch (failed) {
      if (failed instanceof CutawayError) setError(failed);
      else if (!mine.signal.aborted) throw failed;
    } finally {
      if (running.current === mine) setBusy(false);
    }
  }, [options]);

  return { remove, url, busy, error };
}
