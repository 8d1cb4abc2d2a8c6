"use strict";
// Everything shown is computed when the page is made: this script puts the state of the chosen image into Bokeh's models and
// blends precomputed images.
const data = JSON.parse(document.getElementById("data").textContent);
const element = (id) => document.getElementById(id);
const model = (name) => Bokeh.documents.map((one) => one.get_model_by_name(name)).find(Boolean);
const value = (id) => Number(element(id).value);
const atlas = new Image();

function show(state) {
  for (const [name, properties] of Object.entries(state.models)) {
    const target = model(name);
    target.setv(properties.data ? { data: { ...target.data, ...properties.data } } : properties);
  }
  for (const [id, text] of Object.entries(state.text)) element(id).textContent = text;
}

// Draws a weighted mean of tiles; the weights add up to 1.
function blend(canvas, tiles) {
  const context = canvas.getContext("2d"), { width, height, columns } = data.tile;
  Object.assign(canvas, { width, height });
  context.globalCompositeOperation = "lighter";
  for (const [index, weight] of tiles) {
    context.globalAlpha = weight;
    context.drawImage(atlas, (index % columns) * width, Math.floor(index / columns) * height, width, height, 0, 0, width, height);
  }
}

// The two nearest steps of a position in [0, 1], with their weights.
function nearest(position, steps) {
  const exact = Math.min(Math.max(position, 0), 1) * (steps - 1), low = Math.min(Math.floor(exact), steps - 2);
  return [[low, low + 1 - exact], [low + 1, exact - low]];
}

function onInput(ids, update) {
  for (const id of ids) element(id).addEventListener("input", update);
  update();
}

const chosen = () => Number(document.querySelector("input[name=image]:checked").value);
const moments = [...(data.earlier ?? []), data];
const moment = () => moments[element("epoch") ? value("epoch") : 0];
const position = (range, place) => (place - range[0]) / (range[1] - range[0]);

function startPlane() {
  const move = (z0, z1) => {
    const { x, y, side, first } = moment().plane;
    const columns = nearest(position(x, z0), side), rows = nearest(position(y, z1), side);
    blend(element("decoded"), rows.flatMap(([row, a]) => columns.map(([column, b]) => [first + row * side + column, a * b])));
    element("place").textContent = `z = (${z0.toFixed(2)}, ${z1.toFixed(2)})`;
    model("cursor").setv({ data: { x: [z0], y: [z1] } });
  };
  const follow = (event) => {
    [element("place0").value, element("place1").value] = [event.x, event.y];
    move(value("place0"), value("place1"));
  };
  for (const name of ["mousemove", "tap", "pan"]) model("latent").on_event(name, follow);
  const place = () => move(value("place0"), value("place1"));
  onInput(["place0", "place1"], place);
  if (element("epoch")) onInput(["epoch"], () => {
    show(moment());
    element("epoch").setAttribute("aria-valuetext", element("epoch-name").textContent);
    const { x, y } = moment().plane;
    for (const [id, [min, max]] of [["place0", x], ["place1", y]]) Object.assign(element(id), { min, max });
    place();
  });
}

function startPosteriors() {
  const image = () => moment().images[chosen()];
  const draws = () => {
    show(image().weighted[value("draws")]);
    element("draws").setAttribute("aria-valuetext", element("k").textContent);
  };
  const update = () => { show(image()); draws(); };
  for (const id of ["choice", "epoch"]) element(id)?.addEventListener("input", update);
  show(image());
  onInput(["draws"], draws);
}

function startTraversals({ count, units, steps, width, pairs }) {
  const traverse = () => {
    for (let unit = 0; unit < units; unit++) {
      const first = (chosen() * units + unit) * steps, at = value(`unit${unit}`);
      blend(element(`traversal${unit}`), nearest((at + width) / (2 * width), steps).map(([step, a]) => [first + step, a]));
      element(`at${unit}`).textContent = at.toFixed(1);
    }
  };
  const connect = () => {
    const ends = [value("from"), value("to")], backwards = ends[0] > ends[1];
    const pair = pairs.findIndex(([a, b]) => a === Math.min(...ends) && b === Math.max(...ends));
    const place = backwards ? 1 - value("between") : value("between"), first = (count * units + pair) * steps;
    if (pair >= 0) blend(element("interpolated"), nearest(place, steps).map(([step, a]) => [first + step, a]));
  };
  element("choice").addEventListener("input", traverse);
  onInput([...Array(units).keys()].map((unit) => `unit${unit}`), traverse);
  onInput(["from", "to", "between"], connect);
}

async function start() {
  atlas.src = data.atlas;
  await atlas.decode();
  while (!(window.Bokeh && Bokeh.documents.length)) await new Promise((resolve) => setTimeout(resolve, 20));
  if (data.plane) startPlane();
  if (data.images?.length) startPosteriors();
  if (data.traversals) startTraversals(data.traversals);
  document.body.dataset.ready = "yes";
}
start();
