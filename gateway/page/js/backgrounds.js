// What stands behind: nothing, a colour, the picture blurred, a scene drawn here, or a picture of one's own.

/** Scenes that this project draws itself; each fills a canvas of any size. */
export const SCENES = {
  Studio(context, width, height) {
    const light = context.createRadialGradient(width / 2, height * 0.42, 0, width / 2, height * 0.5, Math.hypot(width, height) * 0.6);
    light.addColorStop(0, "#f4f2ee");
    light.addColorStop(0.6, "#cfccc5");
    light.addColorStop(1, "#8f8c86");
    fill(context, light, width, height);
  },
  Dusk(context, width, height) {
    fill(context, gradient(context, height, ["#27325c", "#7a4f86", "#e2826b", "#ffcf8f"]), width, height);
    for (const [base, rise, colour] of [[0.72, 0.07, "#4a355f"], [0.8, 0.05, "#33264a"], [0.9, 0.04, "#1e1831"]]) {
      context.fillStyle = colour;
      context.beginPath();
      context.moveTo(0, height);
      for (let step = 0; step <= 40; step += 1) {
        const x = step / 40;
        const y = base + rise * Math.sin(x * 7 + base * 40) * Math.cos(x * 3.1 + base * 9);
        context.lineTo(x * width, y * height);
      }
      context.lineTo(width, height);
      context.fill();
    }
  },
  Sea(context, width, height) {
    fill(context, gradient(context, height, ["#9fd3ee", "#dff2f7", "#f6efe0"]), width, height);
    context.fillStyle = gradient(context, height, ["#3f9bb5", "#3f9bb5", "#1d6480"]);
    context.fillRect(0, height * 0.58, width, height * 0.26);
    context.fillStyle = "#e9d8b4";
    context.fillRect(0, height * 0.84, width, height * 0.16);
  },
  Garden(context, width, height) {
    fill(context, gradient(context, height, ["#86a974", "#456f4b", "#24452f"]), width, height);
    const random = seeded(7);
    for (let dot = 0; dot < 70; dot += 1) {
      const radius = (0.02 + 0.06 * random()) * Math.max(width, height);
      context.fillStyle = `hsla(${70 + 60 * random()}, 55%, ${45 + 30 * random()}%, ${0.08 + 0.14 * random()})`;
      context.beginPath();
      context.arc(random() * width, random() * height, radius, 0, 7);
      context.fill();
    }
  },
  Paper(context, width, height) {
    fill(context, "#e9e1d2", width, height);
    const random = seeded(3);
    context.fillStyle = "#b9a98c18";
    for (let fibre = 0; fibre < 900; fibre += 1) context.fillRect(random() * width, random() * height, 1 + random() * width / 40, 1);
  },
};

function fill(context, style, width, height) {
  context.fillStyle = style;
  context.fillRect(0, 0, width, height);
}

function gradient(context, height, colours) {
  const result = context.createLinearGradient(0, 0, 0, height);
  colours.forEach((colour, index) => result.addColorStop(index / (colours.length - 1), colour));
  return result;
}

function seeded(seed) {
  let state = seed;
  return () => (state = (state * 16807) % 2147483647) / 2147483647;
}

/** Draw a background onto a context of this size; false where it is transparent. */
export function draw(context, width, height, background, picture) {
  switch (background.kind) {
    case "colour":
      fill(context, background.colour, width, height);
      return true;
    case "blur":
      blurred(context, width, height, picture, background.share);
      return true;
    case "scene":
      SCENES[background.name](context, width, height);
      return true;
    case "own":
      cover(context, background.picture, width, height);
      return true;
    default:
      return false;
  }
}

/** By drawing it small and large again, which every browser does alike. `share` is of the longest side. */
function blurred(context, width, height, picture, share) {
  const side = Math.max(6, Math.round(1 / Math.max(share, 0.002)));
  const small = canvas(Math.max(2, Math.round((side * width) / Math.max(width, height))), Math.max(2, Math.round((side * height) / Math.max(width, height))));
  small.context.imageSmoothingQuality = "high";
  small.context.drawImage(picture, 0, 0, small.element.width, small.element.height);
  const middle = canvas(small.element.width * 4, small.element.height * 4);
  middle.context.drawImage(small.element, 0, 0, middle.element.width, middle.element.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(middle.element, 0, 0, width, height);
}

function cover(context, picture, width, height) {
  const scale = Math.max(width / picture.width, height / picture.height);
  const [wide, high] = [picture.width * scale, picture.height * scale];
  context.drawImage(picture, (width - wide) / 2, (height - high) / 2, wide, high);
}

export function canvas(width, height) {
  const element = document.createElement("canvas");
  element.width = Math.max(1, Math.round(width));
  element.height = Math.max(1, Math.round(height));
  return { element, context: element.getContext("2d", { willReadFrequently: true }) };
}

/** Move the colours of what is visible towards the background's mean and spread; `strength` 0 to 1. */
export function matchColours(pixels, alpha, behind, strength) {
  for (let channel = 0; channel < 3; channel += 1) {
    const [mean, spread] = moments(pixels, channel, alpha);
    const [wanted, wide] = moments(behind, channel, null);
    const gain = 1 + strength * 0.5 * (Math.min(1.25, Math.max(0.8, wide / Math.max(spread, 1))) - 1);
    const shift = strength * 0.45 * Math.min(40, Math.max(-40, wanted - mean));
    for (let at = channel; at < pixels.length; at += 4) pixels[at] = (pixels[at] - mean) * gain + mean + shift;
  }
}

function moments(pixels, channel, alpha) {
  let [weight, sum, square] = [0, 0, 0];
  for (let pixel = 0; pixel < pixels.length / 4; pixel += 7) {
    const share = alpha ? alpha[pixel] / 255 : 1;
    const value = pixels[4 * pixel + channel];
    weight += share;
    sum += share * value;
    square += share * value * value;
  }
  const mean = sum / Math.max(weight, 1);
  return [mean, Math.sqrt(Math.max(0, square / Math.max(weight, 1) - mean * mean))];
}
