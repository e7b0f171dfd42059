// The page: tabs, how pictures come in, what the controls do, and what is said.

import * as api from "./api.js";
import * as batch from "./batch.js";
import { SCENES, canvas } from "./backgrounds.js";
import { Editor, SCREEN_PX, asCode, options } from "./editor.js";
import * as live from "./live.js";
import * as people from "./people.js";

const element = (id) => document.getElementById(id);
const editor = new Editor();
const say = (text) => { element("status").textContent = text; };
let asked = new AbortController();
let drawing = 0;

function fail(error) {
  if (error.name === "AbortError") return;
  element("error").textContent = error.message || "Something went wrong in the page.";
  element("error").hidden = false;
}

function save(blob, name) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

const subject = () => document.querySelector("input[name=subject]:checked").value;

// ------------------------------------------------------------------------------------------------ one picture

async function open(file) {
  if (!file) return;
  element("error").hidden = true;
  asked.abort();
  try {
    const picture = await createImageBitmap(file).catch(() => { throw new api.ServiceError("INVALID_FORMAT", ""); });
    editor.open(file, picture);
    element("drop").hidden = true;
    element("view").hidden = false;
    show(element("before"), editor.picture);
    element("after").hidden = true;
    people.show(editor, element("people"), element("chips"), toggle);
    enable(true);
    await recut();
    await findPeople();
  } catch (error) {
    fail(error);
  }
}

async function recut() {
  asked.abort();
  asked = new AbortController();
  const { signal } = asked;
  element("busy").hidden = false;
  element("error").hidden = true;
  try {
    const answer = await api.cut(editor.file, options(editor, subject()), signal);
    editor.take(await createImageBitmap(answer.blob));
    editor.found = answer.people;
    const who = answer.subject === "all" ? "what the picture shows" : answer.people === 1 ? "one person" : `${answer.people} people`;
    const notes = answer.warnings.length ? ` Notes: ${answer.warnings.map((code) => code.toLowerCase().replaceAll("_", " ")).join(", ")}.` : "";
    say(`Cut out ${who} in ${Math.round(answer.elapsedMs)} ms.${notes}`);
    redraw();
  } catch (error) {
    fail(error);
  } finally {
    if (asked.signal === signal) element("busy").hidden = true;
  }
}

async function findPeople() {
  if (!editor.cutout || !editor.found || subject() === "all") return;
  const file = editor.file;
  const { persons } = await api.detect(file);
  if (editor.file !== file) return;
  editor.persons = persons;
  editor.chosen = new Set(persons.map((person) => person.person_id));
  people.show(editor, element("people"), element("chips"), toggle);
  redraw();
}

async function toggle(id) {
  const { chosen } = editor;
  if (chosen.has(id) && chosen.size === 1) {
    say("At least one person stays. Choose another one first.");
    return;
  }
  if (!chosen.delete(id)) chosen.add(id);
  const focused = [...element("chips").children].findIndex((item) => item.contains(document.activeElement));
  people.show(editor, element("people"), element("chips"), toggle);
  element("chips").children[focused]?.firstChild.focus();
  await recut();
}

function show(target, drawn) {
  const share = Math.min(1, SCREEN_PX / Math.max(drawn.width, drawn.height));
  [target.width, target.height] = [Math.round(drawn.width * share), Math.round(drawn.height * share)];
  target.getContext("2d").drawImage(drawn, 0, 0, target.width, target.height);
}

function redraw() {
  cancelAnimationFrame(drawing);
  drawing = requestAnimationFrame(() => {
    if (!editor.cutout) return;
    const { element: result, frame } = editor.render(SCREEN_PX);
    show(element("after"), result);
    element("after").hidden = false;
    const before = canvas(frame.width, frame.height);
    const share = Math.min(1, SCREEN_PX / Math.max(editor.picture.width, editor.picture.height));
    before.context.drawImage(editor.picture, -frame.x, -frame.y, editor.picture.width * share, editor.picture.height * share);
    show(element("before"), before.element);
    element("people").style.visibility = editor.look.crop === "none" ? "" : "hidden";
    slid();
    const code = asCode(editor, subject(), location.origin);
    element("curl").textContent = code.curl;
    element("python").textContent = code.python;
    element("in-page").textContent = code.inPage;
  });
}

function slid() {
  const share = element("slide").value;
  element("after").style.clipPath = `inset(0 0 0 ${share}%)`;
  element("divider").style.left = `${share}%`;
  element("divider").style.display = share > 0 && share < 100 ? "block" : "none";
}

function enable(on) {
  document.querySelectorAll("#controls fieldset").forEach((part) => { part.disabled = !on; });
}

// ------------------------------------------------------------------------------------------------- controls

function backgrounds() {
  const choices = [
    { name: "Transparent", background: { kind: "transparent" }, paint: null },
    { name: "White", background: { kind: "colour", colour: "#ffffff" } },
    { name: "Colour", background: { kind: "colour" }, id: "swatch-colour" },
    { name: "Blurred", background: { kind: "blur" }, paint: (context) => SCENES.Garden(context, 46, 46), id: "swatch-blur" },
    ...Object.keys(SCENES).map((name) => ({ name, background: { kind: "scene", name }, paint: (context) => SCENES[name](context, 46, 46) })),
    { name: "Own picture", background: { kind: "own" }, id: "swatch-own", hidden: true },
  ];
  for (const choice of choices) {
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("role", "radio");
    button.setAttribute("aria-label", choice.name);
    button.title = choice.name;
    if (choice.id) button.id = choice.id;
    button.hidden = Boolean(choice.hidden);
    const swatch = canvas(46, 46);
    if (choice.paint) choice.paint(swatch.context);
    else paintSwatch(swatch.context, choice.background.colour ?? (choice.id === "swatch-colour" ? element("colour").value : null));
    button.append(swatch.element);
    button.addEventListener("click", () => choose(button, choice.background));
    element("swatches").append(button);
  }
  mark(element("swatches").firstChild);
  element("swatches").addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const all = [...element("swatches").children].filter((button) => !button.hidden);
    all[(all.indexOf(document.activeElement) + step + all.length) % all.length].click();
  });
}

function paintSwatch(context, colour) {
  context.fillStyle = colour ?? "#fff";
  context.fillRect(0, 0, 46, 46);
  context.fillStyle = "#c9cbc3";
  for (let cell = 0; !colour && cell < 16; cell += 1) if ((cell + (cell >> 2)) % 2) context.fillRect((cell % 4) * 11.5, (cell >> 2) * 11.5, 11.5, 11.5);
}

function mark(chosen) {
  for (const button of element("swatches").children) {
    button.setAttribute("aria-checked", String(button === chosen));
    button.tabIndex = button === chosen ? 0 : -1;
  }
  if (element("swatches").contains(document.activeElement)) chosen.focus();
}

function choose(button, background) {
  mark(button);
  const found = { ...background };
  if (button.id === "swatch-colour") found.colour = element("colour").value;
  if (found.kind === "blur") blurOf(found);
  if (found.kind === "own") found.picture = editor.own;
  editor.look.background = found;
  redraw();
}

function blurOf(background) {
  background.blurPx = Number(element("blur").value);
  const side = editor.picture ? Math.max(editor.picture.width, editor.picture.height) : 1000;
  background.share = (2.5 * background.blurPx) / side;
}

function controls() {
  const numbers = { feather: "px", shrink: "px", hair: "", margin: "%", match: null };
  for (const [name, unit] of Object.entries(numbers)) {
    element(name).addEventListener("input", () => {
      editor.look[name] = Number(element(name).value);
      const output = document.querySelector(`output[for=${name}]`);
      if (output) output.textContent = `${element(name).value} ${unit}`.trim();
      redraw();
    });
  }
  element("crop").addEventListener("change", () => { editor.look.crop = element("crop").value; redraw(); });
  element("colour").addEventListener("input", () => {
    const swatch = element("swatch-colour");
    paintSwatch(swatch.firstChild.getContext("2d"), element("colour").value);
    choose(swatch, { kind: "colour" });
  });
  element("blur").addEventListener("input", () => choose(element("swatch-blur"), { kind: "blur" }));
  element("own").addEventListener("change", async ({ target }) => {
    try {
      editor.own = await createImageBitmap(target.files[0]);
    } catch {
      fail(new Error("That background is not a picture this browser reads."));
      return;
    }
    const swatch = element("swatch-own");
    swatch.hidden = false;
    swatch.firstChild.getContext("2d").drawImage(editor.own, 0, 0, 46, 46);
    choose(swatch, { kind: "own" });
  });
  element("slide").addEventListener("input", slid);
  document.querySelectorAll("input[name=subject]").forEach((input) => input.addEventListener("change", async () => {
    editor.persons = [];
    editor.chosen = new Set();
    people.show(editor, element("people"), element("chips"), toggle);
    await recut();
    await findPeople().catch(fail);
  }));
  element("save").addEventListener("click", async () => {
    try {
      const { blob, name } = await editor.encode(element("format").value);
      save(blob, name);
      say(`Saved ${name}.`);
    } catch (error) {
      fail(error);
    }
  });
  element("another").addEventListener("click", () => element("file").click());
}

// --------------------------------------------------------------------------------------- how pictures come in

function incoming(several) {
  for (const id of ["file", "camera"]) {
    element(id).addEventListener("change", ({ target }) => { open(target.files[0]); target.value = ""; });
  }
  element("files").addEventListener("change", ({ target }) => { several.add(target.files); target.value = ""; });
  document.addEventListener("paste", ({ clipboardData }) => take([...clipboardData.files]));
  for (const kind of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault();
      document.body.classList.toggle("over", kind === "dragover");
      if (kind === "drop") take([...event.dataTransfer.files]);
    });
  }
  function take(files) {
    if (!files.length) return;
    if (files.length > 1 || !element("panel-batch").hidden) {
      chooseTab("batch");
      several.add(files);
    } else {
      chooseTab("picture");
      open(files[0]);
    }
  }
}

const TABS = ["picture", "batch", "live"];

function chooseTab(chosen) {
  for (const name of TABS) {
    const tab = element(`tab-${name}`);
    tab.setAttribute("aria-selected", String(name === chosen));
    tab.tabIndex = name === chosen ? 0 : -1;
    element(`panel-${name}`).hidden = name !== chosen;
  }
}

function tabs(video) {
  for (const name of TABS) {
    element(`tab-${name}`).addEventListener("click", () => { chooseTab(name); if (name !== "live") video.end(); });
    element(`tab-${name}`).addEventListener("keydown", ({ key }) => {
      const step = { ArrowRight: 1, ArrowLeft: 2 }[key];
      if (!step) return;
      const next = TABS[(TABS.indexOf(name) + step) % TABS.length];
      chooseTab(next);
      element(`tab-${next}`).focus();
    });
  }
}

async function healthy() {
  const { status, device, model } = await api.health();
  const light = element("health");
  light.className = `health ${status === "healthy" ? "good" : "bad"}`;
  light.textContent = status === "healthy" ? `${model} on ${device}` : `Server ${status}`;
}

function theme() {
  const kept = localStorage.getItem("theme");
  if (kept) document.documentElement.dataset.theme = kept;
  element("theme").addEventListener("click", () => {
    const dark = document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
    document.documentElement.dataset.theme = dark === "dark" ? "light" : "dark";
    localStorage.setItem("theme", document.documentElement.dataset.theme);
  });
}

theme();
backgrounds();
controls();
incoming(batch.setUp({ element, save, fail }));
tabs(live.setUp({ element, fail, say }));
healthy();
setInterval(healthy, 30_000);
