// The edge of a cut-out, changed in the page: fine hair, shrink, feather, in this order, on the alpha alone.

/** A new alpha (Uint8ClampedArray, width × height) from another. Lengths are in pixels of this size. */
export function changed(alpha, width, height, { hair = 0, shrinkPx = 0, featherPx = 0 }) {
  let result = alpha;
  if (hair) {
    const gamma = 2 ** (-hair / 60);
    const table = Uint8ClampedArray.from({ length: 256 }, (_, value) => Math.round(255 * (value / 255) ** gamma));
    result = result.map((value) => table[value]);
  }
  const radius = Math.round(Math.abs(shrinkPx));
  if (radius) {
    const pick = shrinkPx > 0 ? Math.min : Math.max;
    result = extreme(extreme(result, width, height, radius, pick, 1, width), width, height, radius, pick, width, 1);
  }
  const feather = Math.round(featherPx);
  for (let pass = 0; feather && pass < 2; pass += 1) {
    result = mean(mean(result, width, height, feather, false), width, height, feather, true);
  }
  return result;
}

/** The smallest or largest value within a radius along one direction (step along it, `across` to the next line). */
function extreme(source, width, height, radius, pick, step, across) {
  const target = new Uint8ClampedArray(source.length);
  const along = step === 1 ? width : height;
  const lines = step === 1 ? height : width;
  for (let line = 0; line < lines; line += 1) {
    const start = line * across;
    for (let at = 0; at < along; at += 1) {
      let value = source[start + at * step];
      const last = Math.min(along - 1, at + radius);
      for (let near = Math.max(0, at - radius); near <= last; near += 1) value = pick(value, source[start + near * step]);
      target[start + at * step] = value;
    }
  }
  return target;
}

/** A running mean along one direction. */
function mean(source, width, height, radius, vertical) {
  const target = new Uint8ClampedArray(source.length);
  const [along, lines, step, across] = vertical ? [height, width, width, 1] : [width, height, 1, width];
  const count = 2 * radius + 1;
  for (let line = 0; line < lines; line += 1) {
    const start = line * across;
    const value = (at) => source[start + Math.min(along - 1, Math.max(0, at)) * step];
    let sum = 0;
    for (let at = -radius; at <= radius; at += 1) sum += value(at);
    for (let at = 0; at < along; at += 1) {
      target[start + at * step] = sum / count;
      sum += value(at + radius + 1) - value(at - radius);
    }
  }
  return target;
}

/** x, y, width, height of what is visible; null where nothing is. What is fainter than the threshold is haze. */
export function bounds(alpha, width, height, threshold = 40) {
  let [left, top, right, bottom] = [width, height, -1, -1];
  for (let y = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1) {
      if (alpha[y * width + x] < threshold) continue;
      if (x < left) left = x;
      if (x > right) right = x;
      if (y < top) top = y;
      bottom = y;
    }
  }
  return right < 0 ? null : { x: left, y: top, width: right - left + 1, height: bottom - top + 1 };
}
