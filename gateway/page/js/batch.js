// Several pictures, a few at a time, each with its own state; then one ZIP.

import { cut } from "./api.js";
import { zipped } from "./zip.js";

const AT_ONCE = 3;
const MAX_WAITS = 30; // a limit per minute is waited for, not failed at

export function setUp({ element, save, fail }) {
  const tiles = element("tiles");
  let [jobs, running, stop] = [[], 0, new AbortController()];

  function add(files) {
    if (stop.signal.aborted) stop = new AbortController();
    for (const file of files) {
      const tile = document.createElement("li");
      const picture = document.createElement("img");
      picture.className = "thumb";
      picture.alt = file.name;
      picture.src = URL.createObjectURL(file);
      const [name, state] = ["name", "state"].map((kind) => Object.assign(document.createElement("span"), { className: kind }));
      name.textContent = file.name;
      state.textContent = "waiting";
      tile.append(picture, name, state);
      tiles.append(tile);
      jobs.push({ file, tile, picture, state, result: null, finished: false, begun: false });
    }
    element("batch-stop").hidden = false;
    while (running < AT_ONCE && next()) work();
    show();
  }

  const next = () => jobs.find((job) => !job.begun);

  async function work() {
    running += 1;
    for (let job = next(); job && !stop.signal.aborted; job = next()) {
      job.begun = true;
      await run(job);
      show();
    }
    running -= 1;
    show();
  }

  async function run(job) {
    job.state.textContent = "cutting out…";
    for (let wait = 0; wait < MAX_WAITS; wait += 1) {
      try {
        const { blob, elapsedMs } = await cut(job.file, { subject: "auto" }, stop.signal);
        job.result = blob;
        URL.revokeObjectURL(job.picture.src);
        job.picture.src = URL.createObjectURL(blob);
        job.state.textContent = `done in ${Math.round(elapsedMs)} ms`;
        break;
      } catch (error) {
        if (error.code === "RATE_LIMIT_EXCEEDED" && error.retryAfterS && !stop.signal.aborted) {
          job.state.textContent = `waits ${error.retryAfterS} s for the server's limit`;
          await new Promise((resolve) => setTimeout(resolve, error.retryAfterS * 1000));
          continue;
        }
        job.tile.classList.add("failed");
        job.state.textContent = error.name === "AbortError" ? "stopped" : error.message;
        break;
      }
    }
    job.finished = true;
  }

  function show() {
    const done = jobs.filter((job) => job.finished).length;
    const failed = jobs.filter((job) => job.finished && !job.result).length;
    element("batch-progress").max = Math.max(1, jobs.length);
    element("batch-progress").value = done;
    element("batch-count").textContent = jobs.length ? `${done} of ${jobs.length} done${failed ? `, ${failed} failed` : ""}` : "No pictures yet";
    element("zip").disabled = !jobs.some((job) => job.result);
    element("batch-stop").hidden = running === 0;
  }

  element("batch-stop").addEventListener("click", () => {
    stop.abort();
    jobs = jobs.filter((job) => job.begun);
    show();
  });
  element("zip").addEventListener("click", async () => {
    try {
      const files = jobs.filter((job) => job.result);
      save(await zipped(files.map((job) => ({ name: `${job.file.name.replace(/\.[^.]*$/, "")}-cutout.png`, blob: job.result }))), "cutouts.zip");
    } catch (error) {
      fail(error);
    }
  });
  return { add };
}
