// One picture: what it is, what was cut out of it, and how both become the picture on screen or in a file.

import { bounds, changed } from "./edges.js";
import { canvas, draw, matchColours } from "./backgrounds.js";

export const SCREEN_PX = 1400; // longest side on screen; files have the picture's own size

export class Editor {
  constructor() {
    this.look = { hair: 0, shrink: 0, feather: 0, match: 0, margin: 6, crop: "none", background: { kind: "transparent" } };
    this.file = this.picture = this.cutout = null;
    this.persons = [];
    this.chosen = new Set();
    this.kept = new Map();
  }

  open(file, picture) {
    Object.assign(this, { file, picture, cutout: null, persons: [], chosen: new Set() });
    this.kept.clear();
  }

  take(cutout) {
    this.cutout = cutout;
    this.kept.clear();
  }

  /** Colours and alpha of the cut-out at a size, from memory where it was drawn before. */
  #pixels(width, height) {
    const key = `${width}x${height}`;
    if (!this.kept.has(key)) {
      const { context } = canvas(width, height);
      context.imageSmoothingQuality = "high";
      context.drawImage(this.cutout, 0, 0, width, height);
      const { data } = context.getImageData(0, 0, width, height);
      const alpha = new Uint8ClampedArray(width * height);
      for (let pixel = 0; pixel < alpha.length; pixel += 1) alpha[pixel] = data[4 * pixel + 3];
      this.kept.set(key, { data, alpha });
    }
    return this.kept.get(key);
  }

  /** The composed picture, at most so large; `at` is the part of the picture that it shows, as shares. */
  render(maxSide = Infinity) {
    const share = Math.min(1, maxSide / Math.max(this.picture.width, this.picture.height));
    const [width, height] = [this.picture.width, this.picture.height].map((side) => Math.max(1, Math.round(side * share)));
    const { data, alpha } = this.#pixels(width, height);
    const { look } = this;
    const edge = changed(alpha, width, height, { hair: look.hair, shrinkPx: look.shrink * share, featherPx: look.feather * share });
    const result = canvas(width, height);
    const covered = draw(result.context, width, height, look.background, this.picture);
    const pixels = new ImageData(new Uint8ClampedArray(data), width, height);
    if (covered && look.match) {
      matchColours(pixels.data, edge, result.context.getImageData(0, 0, width, height).data, look.match / 100);
    }
    for (let pixel = 0; pixel < edge.length; pixel += 1) pixels.data[4 * pixel + 3] = edge[pixel];
    const front = canvas(width, height);
    front.context.putImageData(pixels, 0, 0);
    result.context.drawImage(front.element, 0, 0);
    return this.#cropped(result.element, this.#frame(edge, width, height));
  }

  /** x, y, width, height of what is kept, in pixels of the rendered size; it may reach beyond the picture. */
  #frame(alpha, width, height) {
    const box = this.look.crop === "none" ? null : bounds(alpha, width, height);
    if (!box) return { x: 0, y: 0, width, height };
    const margin = (this.look.margin / 100) * Math.max(box.width, box.height);
    let frame = { x: box.x - margin, y: box.y - margin, width: box.width + 2 * margin, height: box.height + 2 * margin };
    if (this.look.crop !== "subject") {
      const ratio = Number(this.look.crop);
      const wide = Math.max(frame.width, frame.height * ratio);
      const high = wide / ratio;
      frame = { x: frame.x + (frame.width - wide) / 2, y: frame.y + (frame.height - high) / 2, width: wide, height: high };
    }
    const inside = this.look.background.kind !== "transparent" || this.look.crop === "subject";
    if (!inside) return rounded(frame);
    const left = Math.max(0, frame.x);
    const top = Math.max(0, frame.y);
    return rounded({ x: left, y: top, width: Math.min(width, frame.x + frame.width) - left, height: Math.min(height, frame.y + frame.height) - top });
  }

  #cropped(element, frame) {
    const result = canvas(frame.width, frame.height);
    result.context.drawImage(element, -frame.x, -frame.y);
    return { element: result.element, frame };
  }

  /** The file, and its name. */
  async encode(type) {
    const { element } = this.render();
    let drawn = element;
    if (type === "image/jpeg") {
      const flat = canvas(element.width, element.height);
      flat.context.fillStyle = "#fff";
      flat.context.fillRect(0, 0, element.width, element.height);
      flat.context.drawImage(element, 0, 0);
      drawn = flat.element;
    }
    const blob = await new Promise((resolve) => drawn.toBlob(resolve, type, 0.92));
    const stem = (this.file.name ?? "picture").replace(/\.[^.]*$/, "") || "picture";
    return { blob, name: `${stem}-cutout.${type.split("/")[1].replace("jpeg", "jpg")}` };
  }
}

const rounded = ({ x, y, width, height }) => ({ x: Math.round(x), y: Math.round(y), width: Math.max(1, Math.round(width)), height: Math.max(1, Math.round(height)) });

/** The options of the service for who is cut out. */
export function options(editor, subject) {
  const some = editor.persons.length && editor.chosen.size < editor.persons.length;
  return some ? { subject: "people", select: JSON.stringify([...editor.chosen].sort((a, b) => a - b)) } : { subject };
}

/** curl and Python for what is on screen, and what of it the page itself does. */
export function asCode(editor, subject, origin) {
  const given = options(editor, subject);
  const { look } = editor;
  const inPage = [];
  if (look.background.kind === "colour") given.background = look.background.colour.toUpperCase();
  else if (look.background.kind === "blur") given.background = `blur:${look.background.blurPx}`;
  else if (look.background.kind !== "transparent") inPage.push("the background picture");
  if (look.feather) given.feather_px = look.feather;
  if (look.crop === "subject") Object.assign(given, { crop: true, crop_margin_percent: look.margin });
  else if (look.crop !== "none") inPage.push("the crop's shape");
  if (look.shrink) inPage.push("shrinking");
  if (look.hair) inPage.push("fine hair");
  if (look.match) inPage.push("matched colours");
  const name = editor.file?.name ?? "photo.jpg";
  const fields = Object.entries(given).map(([key, value]) => ` -F '${key}=${value}'`).join("");
  const quoted = name.replaceAll("'", "");
  const keywords = Object.entries(given).map(([key, value]) => `, ${key}=${python(key, value)}`).join("");
  return {
    curl: `curl -F 'image=@${quoted}' -F smoothing=false${fields} \\\n  ${origin}/api/background-removal/remove -o cutout.png`,
    python: `import cutaway\n\nwith cutaway.Client("grpc://${new URL(origin).hostname}:8001") as client:\n    client.cut("${quoted.replaceAll('"', "")}"${keywords}).save("cutout.png")`,
    inPage: inPage.length ? `Done in the page, not by the server: ${inPage.join(", ")}.` : "",
  };
}

function python(key, value) {
  if (key === "select") return value;
  if (value === true) return "True";
  return typeof value === "number" ? value : `"${value}"`;
}
