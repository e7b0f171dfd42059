// The people of a picture, outlined over it and as chips; a click or key takes one in or out.

const SVG = "http://www.w3.org/2000/svg";

/** Draw the people; `onToggle(id)` when one is chosen. */
export function show(editor, overlay, chips, onToggle) {
  overlay.replaceChildren();
  chips.replaceChildren();
  if (!editor.persons.length) return;
  overlay.setAttribute("viewBox", `0 0 ${editor.picture.width} ${editor.picture.height}`);
  overlay.setAttribute("preserveAspectRatio", "none");
  editor.persons.forEach((person, index) => {
    const name = `Person ${index + 1}`;
    const inside = editor.chosen.has(person.person_id);
    const toggle = () => onToggle(person.person_id);
    const shape = document.createElementNS(SVG, "polygon");
    shape.setAttribute("points", (person.outline ?? corners(person.bbox)).map((point) => point.join(",")).join(" "));
    shape.classList.toggle("off", !inside);
    shape.addEventListener("click", toggle);
    overlay.append(shape);
    const chip = document.createElement("button");
    chip.type = "button";
    chip.textContent = name;
    chip.setAttribute("aria-pressed", String(inside));
    chip.addEventListener("click", toggle);
    const item = document.createElement("li");
    item.append(chip);
    chips.append(item);
  });
}

function corners({ x1, y1, x2, y2 }) {
  return [[x1, y1], [x2, y1], [x2, y2], [x1, y2]];
}
