// Maps that tell the value under the pointer, or at the place that the arrow keys choose; charts
// that show which curve is whose. All text is set as text. Every page works without this script.
"use strict";

{
  const maps = [...document.querySelectorAll("svg.map")];
  const data = globalThis.zfscaleMaps;
  const occluder = document.querySelector(".occluder");
  const readouts = [...document.querySelectorAll(".now")];
  let shown = null; // [row, column] of the position that is shown, or null

  function told(what, at) {
    const value = data.values[what]?.[at];
    return (what === "class" ? data.classes[value] : value) ?? "";
  }

  function show(row, column) {
    const [rows, columns] = data.grid;
    shown = [Math.max(0, Math.min(row, rows - 1)), Math.max(0, Math.min(column, columns - 1))];
    const [down, right] = [shown[0] * data.stride[0], shown[1] * data.stride[1]];
    const at = shown[0] * columns + shown[1];
    for (const readout of readouts) readout.textContent = told(readout.dataset.of, at);
    for (const map of maps) {
      const cursor = map.querySelector(".cursor");
      cursor.setAttribute("transform", `translate(${data.cover[0] + right} ${data.cover[1] + down})`);
      cursor.removeAttribute("hidden");
    }
    occluder?.setAttribute("transform", `translate(${right - home[0]} ${down - home[1]})`);
  }

  function rest() {
    shown = null;
    for (const readout of readouts) readout.textContent = "";
    for (const map of maps) map.querySelector(".cursor").setAttribute("hidden", "");
    occluder?.removeAttribute("transform");
  }

  // Where the occluder is drawn in the page, as [x, y].
  const corner = occluder?.querySelector("rect");
  const home = corner ? ["x", "y"].map((name) => Number(corner.getAttribute(name))) : [0, 0];

  function follow(event) {
    const point = new DOMPoint(event.clientX, event.clientY);
    const { x, y } = point.matrixTransform(event.currentTarget.getScreenCTM().inverse());
    const row = Math.floor((y - data.cover[1]) / data.stride[0]);
    show(row, Math.floor((x - data.cover[0]) / data.stride[1]));
  }

  const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

  function move(event) {
    if (event.key === "Escape") rest();
    const by = moves[event.key];
    if (!by || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation(); // elsewhere the arrows lead to the next image
    const [row, column] = shown ?? data.grid.map((length) => Math.floor(length / 2));
    show(row + by[0], column + by[1]);
  }

  if (data) {
    for (const map of maps) {
      map.addEventListener("pointermove", follow);
      map.addEventListener("pointerdown", follow);
      map.addEventListener("pointerleave", rest);
      map.addEventListener("keydown", move);
      map.addEventListener("blur", rest);
    }
  }

  // The curves of the image under the pointer, or in focus, stand out.
  for (const item of document.querySelectorAll(".drawn [data-image]")) {
    const curves = document.querySelectorAll(`.curve[data-image="${item.dataset.image}"]`);
    const light = (on) => () => curves.forEach((curve) => curve.classList.toggle("lit", on));
    for (const name of ["pointerenter", "focus"]) item.addEventListener(name, light(true));
    for (const name of ["pointerleave", "blur"]) item.addEventListener(name, light(false));
  }
}
