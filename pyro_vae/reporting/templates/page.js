"use strict";
// Everything shown is computed when the page is made: this script puts the state of the chosen
// image into Bokeh's models and blends precomputed images. It reads one JSON document, whose fields
// are described in document.py.
const page = JSON.parse(document.getElementById("data").textContent);
const element = (id) => document.getElementById(id);
const value = (id) => Number(element(id).value);
const tiles = new Image();

function model(name) {
  return Bokeh.documents.map((one) => one.get_model_by_name(name)).find(Boolean);
}

// Shows a state with `models`, `text` and `bars`.
function show(state) {
  for (const [name, properties] of Object.entries(state.models)) {
    const target = model(name);
    if (properties.data) target.setv({ data: { ...target.data, ...properties.data } });
    else target.setv(properties);
  }
  for (const [id, text] of Object.entries(state.text)) {
    if (element(id)) element(id).textContent = text;
  }
  for (const [id, share] of Object.entries(state.bars ?? {})) {
    element(id).style.width = `${100 * share}%`;
  }
}

// Draws a weighted mean of tiles; the weights add up to 1.
function blend(canvas, weighted) {
  const { width, height, columns } = page.atlas;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  Object.assign(canvas, { width, height });
  context.globalCompositeOperation = "lighter";
  for (const [index, weight] of weighted) {
    const x = (index % columns) * width;
    const y = Math.floor(index / columns) * height;
    context.globalAlpha = weight;
    context.drawImage(tiles, x, y, width, height, 0, 0, width, height);
  }
}

function colourOf(name) {
  const hex = getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  return [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16));
}

// Draws where a canvas is darker than a tile, in one colour, and lighter, in another.
function difference(canvas, shown, index) {
  const more = colourOf("guide"), less = colourOf("validation");
  blend(canvas, [[index, 1]]);
  const { width, height } = canvas;
  const context = canvas.getContext("2d");
  const picture = context.getImageData(0, 0, width, height);
  const other = shown.getContext("2d").getImageData(0, 0, width, height).data;
  const { data } = picture;
  for (let i = 0; i < data.length; i += 4) {
    const ink = (data[i] + data[i + 1] + data[i + 2] - other[i] - other[i + 1] - other[i + 2]) / 3;
    const share = Math.min(2 * Math.abs(ink) / 255, 1);
    const colour = ink > 0 ? more : less;
    for (let c = 0; c < 3; c++) data[i + c] = 255 + share * (colour[c] - 255);
    data[i + 3] = 255;
  }
  context.putImageData(picture, 0, 0);
}

// The two nearest steps of a position in [0, 1], with their weights.
function nearest(position, steps) {
  const exact = Math.min(Math.max(position, 0), 1) * (steps - 1);
  const low = Math.min(Math.floor(exact), steps - 2);
  return [[low, low + 1 - exact], [low + 1, exact - low]];
}

function onInput(ids, update) {
  for (const id of ids) element(id).addEventListener("input", update);
  update();
}

const picked = (name) => Number(document.querySelector(`input[name=${name}]:checked`).value);
const chosen = () => picked("image");
const last = page.snapshots.length - 1;
const snapshot = () => page.snapshots[element("epoch") ? value("epoch") : last];
const position = ([low, high], at) => (at - low) / (high - low);

function choose(index) {
  const inputs = document.querySelectorAll("input[name=image]");
  inputs[(index + inputs.length) % inputs.length]?.click();
}

// Marks the chosen image on the plots of codes, where a click chooses the nearest marked one.
function startRings(names) {
  const maps = names.filter((name) => model(`${name}_rings`)?.data.x.length);
  const mark = () => {
    for (const name of maps) {
      const rings = model(`${name}_rings`), points = model(`${name}_points`);
      const count = rings.data.x.length;
      const size = Array(count).fill(10), width = Array(count).fill(1.5);
      size[chosen()] = 18;
      width[chosen()] = 4;
      const x = [...points.data.x].slice(0, count), y = [...points.data.y].slice(0, count);
      rings.setv({ data: { x, y, size, width } });
    }
  };
  for (const name of maps) {
    model(name).on_event("tap", (event) => {
      const { x, y } = model(`${name}_rings`).data;
      const far = (n) => (x[n] - event.x) ** 2 + (y[n] - event.y) ** 2;
      choose([...x.keys()].reduce((best, n) => (far(n) < far(best) ? n : best), 0));
    });
  }
  for (const id of ["choice", "epoch"]) element(id)?.addEventListener("input", mark);
  if (maps.length) mark();
}

function startPlane() {
  const move = (z0, z1) => {
    const { x, y, side, first } = snapshot().plane;
    const columns = nearest(position(x, z0), side);
    const rows = nearest(position(y, z1), side);
    const weighted = rows.flatMap(([row, a]) =>
      columns.map(([column, b]) => [first + row * side + column, a * b]));
    blend(element("decoded"), weighted);
    element("place").textContent = `z = (${z0.toFixed(2)}, ${z1.toFixed(2)})`;
    model("cursor").setv({ data: { x: [z0], y: [z1] } });
  };
  const place = () => move(value("place0"), value("place1"));
  const follow = (event) => {
    element("place0").value = event.x;
    element("place1").value = event.y;
    place();
  };
  const travel = () => {
    show(snapshot());
    element("epoch")?.setAttribute("aria-valuetext", snapshot().text.epoch_name);
    const { x, y } = snapshot().plane;
    for (const [id, [min, max]] of [["place0", x], ["place1", y]]) {
      Object.assign(element(id), { min, max });
    }
    place();
  };
  for (const name of ["mousemove", "tap", "pan"]) model("plane").on_event(name, follow);
  onInput(["place0", "place1"], place);
  element("epoch")?.addEventListener("input", travel);
  travel();
}

function startPosteriors() {
  const image = () => snapshot().images[chosen()];
  const draws = () => {
    show(image().draws[value("draws")]);
    element("draws").setAttribute("aria-valuetext", element("k").textContent);
  };
  const update = () => { show(image()); draws(); };
  for (const id of ["choice", "epoch"]) element(id)?.addEventListener("input", update);
  show(image());
  onInput(["draws"], draws);
}

function startPaths({ count, steps, dimensions, pairs }) {
  const onPath = (first, at) => nearest(at, steps).map(([step, a]) => [first + step, a]);
  const firstPair = count * dimensions.length * steps;
  const firstUnchanged = firstPair + pairs.length * steps;
  const traverse = () => {
    dimensions.forEach(({ low, high }, n) => {
      const at = value(`unit${n}`);
      const first = (chosen() * dimensions.length + n) * steps;
      const shown = element(`traversal${n}`);
      blend(shown, onPath(first, position([low, high], at)));
      difference(element(`difference${n}`), shown, firstUnchanged + chosen());
      // Adding 0 turns -0 into 0.
      element(`at${n}`).textContent = (Math.round(10 * at) / 10 + 0).toFixed(1);
    });
  };
  const connect = () => {
    const ends = [picked("from"), picked("to")];
    const low = Math.min(...ends), high = Math.max(...ends);
    const at = ends[0] > ends[1] ? 1 - value("between") : value("between");
    const pair = pairs.findIndex(([a, b]) => a === low && b === high);
    if (pair < 0) blend(element("interpolated"), [[firstUnchanged + low, 1]]);
    else blend(element("interpolated"), onPath(firstPair + pair * steps, at));
  };
  element("choice").addEventListener("input", traverse);
  onInput(dimensions.map((_, n) => `unit${n}`), traverse);
  onInput(["from", "to", "between"], connect);
}

// Arrow keys choose the image and K unless a control has the focus; f shows one panel alone.
function startKeys() {
  let pointed = null;
  document.addEventListener("pointerover", (event) => {
    pointed = event.target.closest(".panel") ?? pointed;
  });
  const slide = (by) => {
    const slider = element("draws");
    if (!slider) return;
    slider.value = Number(slider.value) + by;
    slider.dispatchEvent(new Event("input", { bubbles: true }));
  };
  const keys = {
    ArrowLeft: () => choose(chosen() - 1),
    ArrowRight: () => choose(chosen() + 1),
    ArrowUp: () => slide(1),
    ArrowDown: () => slide(-1),
    f: () => {
      if (document.fullscreenElement) document.exitFullscreen();
      else (pointed ?? document.querySelector(".panel")).requestFullscreen();
    },
  };
  document.addEventListener("keydown", (event) => {
    const isControl = event.target.closest("input, summary") && event.key !== "f";
    if (isControl || event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
    if (!document.querySelector("input[name=image]") && event.key !== "f") return;
    if (event.key.startsWith("Arrow") && !visible()) return;
    keys[event.key]();
    event.preventDefault();
  });
}

// Whether the chooser or its plots are on the screen: elsewhere the arrows scroll.
function visible() {
  const { top, bottom } = element("choice").closest(".panel").getBoundingClientRect();
  return bottom > 0 && top < window.innerHeight;
}

async function start() {
  tiles.src = page.atlas.url;
  await tiles.decode();
  while (!(window.Bokeh && Bokeh.documents.length)) {
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  if (page.snapshots.length) startPlane();
  if (page.snapshots.length && snapshot().images.length) startPosteriors();
  if (page.paths) startPaths(page.paths);
  startRings(["plane", "codes0", "codes1"]);
  startKeys();
  document.body.dataset.ready = "yes";
}
start();
