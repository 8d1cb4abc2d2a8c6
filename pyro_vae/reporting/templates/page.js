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

// Shows a state with `models` and `text`.
function show(state) {
  for (const [name, properties] of Object.entries(state.models)) {
    const target = model(name);
    if (properties.data) target.setv({ data: { ...target.data, ...properties.data } });
    else target.setv(properties);
  }
  for (const [id, text] of Object.entries(state.text)) element(id).textContent = text;
}

// Draws a weighted mean of tiles; the weights add up to 1.
function blend(canvas, weighted) {
  const { width, height, columns } = page.atlas;
  const context = canvas.getContext("2d");
  Object.assign(canvas, { width, height });
  context.globalCompositeOperation = "lighter";
  for (const [index, weight] of weighted) {
    const x = (index % columns) * width;
    const y = Math.floor(index / columns) * height;
    context.globalAlpha = weight;
    context.drawImage(tiles, x, y, width, height, 0, 0, width, height);
  }
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

const chosen = () => Number(document.querySelector("input[name=image]:checked").value);
const last = page.snapshots.length - 1;
const snapshot = () => page.snapshots[element("epoch") ? value("epoch") : last];
const position = ([low, high], at) => (at - low) / (high - low);

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
    element("epoch").setAttribute("aria-valuetext", element("epoch_name").textContent);
    const { x, y } = snapshot().plane;
    for (const [id, [min, max]] of [["place0", x], ["place1", y]]) {
      Object.assign(element(id), { min, max });
    }
    place();
  };
  for (const name of ["mousemove", "tap", "pan"]) model("latent").on_event(name, follow);
  onInput(["place0", "place1"], place);
  if (element("epoch")) onInput(["epoch"], travel);
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
  const traverse = () => {
    dimensions.forEach(({ low, high }, n) => {
      const at = value(`unit${n}`);
      const first = (chosen() * dimensions.length + n) * steps;
      blend(element(`traversal${n}`), onPath(first, position([low, high], at)));
      // Adding 0 turns -0 into 0.
      element(`at${n}`).textContent = (Math.round(10 * at) / 10 + 0).toFixed(1);
    });
  };
  const connect = () => {
    const ends = [value("from"), value("to")];
    const low = Math.min(...ends), high = Math.max(...ends);
    const pair = pairs.findIndex(([a, b]) => a === low && b === high);
    if (pair < 0) return;
    const at = ends[0] > ends[1] ? 1 - value("between") : value("between");
    blend(element("interpolated"), onPath((count * dimensions.length + pair) * steps, at));
  };
  element("choice").addEventListener("input", traverse);
  onInput(dimensions.map((_, n) => `unit${n}`), traverse);
  onInput(["from", "to", "between"], connect);
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
  document.body.dataset.ready = "yes";
}
start();
