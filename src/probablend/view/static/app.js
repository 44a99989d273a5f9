// The page: asks the server what there is, and ties controls to the map.

import { SkyMap } from "./map.js";
import { Selection } from "./selection.js";
import { corner, short, tradeoff } from "./svg.js";

const ROWS = 15; // of the list
const FRAME = 500; // milliseconds that a sample is shown

const $ = (id) => document.getElementById(id);
const motion = matchMedia("(prefers-reduced-motion: reduce)");
let info, sources, map, selection;
let sample = 0, page = 0, opened = null, playing = false;

async function ask(address, kind = "json") {
  let answer;
  try {
    answer = await fetch(address);
  } catch {
    throw new Error("The viewer does not answer: has it been stopped?");
  }
  if (!answer.ok) {
    const said = await answer.text();
    throw new Error(said.startsWith("{") ? JSON.parse(said).error : said);
  }
  return answer[kind]();
}

// What goes wrong in `work` is said on the page.
function told(work) {
  return async (...given) => {
    try {
      say("");
      await work(...given);
    } catch (error) {
      say(error.message, true);
    }
  };
}

function say(text, isError = false) {
  $("status").textContent = text;
  $("status").classList.toggle("error", isError);
}

function element(name, text = "", attributes = {}) {
  const node = Object.assign(document.createElement(name), attributes);
  node.textContent = text;
  return node;
}

// ---- layers and samples

function makeLayers() {
  const samples = info.samples.length ? [{ name: "samples", title: "samples" }] : [];
  for (const { name, title } of [...info.layers, ...samples]) {
    const label = element("label"), radio = element("input");
    Object.assign(radio, { type: "radio", name: "layer", value: name, onchange: () => choose(name) });
    label.append(radio, ` ${title}`);
    $("layers").append(label);
  }
  $("samples").hidden = !info.samples.length;
  motion.addEventListener("change", respectMotion);
  respectMotion();
}

function respectMotion() {
  stop();
  $("sample-play").disabled = motion.matches;
  $("sample-note").textContent = motion.matches ? "Your system asks for reduced motion: step from one to the next." : "";
}

async function choose(name) {
  const radio = document.querySelector(`input[name="layer"][value="${name}"]`);
  if (!radio) return;
  radio.checked = true;
  if (name !== "samples") stop();
  const layer = name === "samples" ? info.samples[sample] : info.layers.find((one) => one.name === name);
  $("sample-number").textContent = `${sample + 1} of ${info.samples.length}`;
  $("bar-title").textContent = layer.title;
  [$("bar-low").textContent, $("bar-high").textContent] = layer.ends;
  $("bar-colours").src = `/legend/${layer.palette}.png`;
  const slow = setTimeout(() => say(`Reading ${layer.title}…`), 800);
  await map.show(layer.name);
  clearTimeout(slow);
  if ($("status").textContent.startsWith("Reading")) say("");
}

function step(by) {
  if (!info.samples.length) return;
  sample = (sample + by + info.samples.length) % info.samples.length;
  return choose("samples");
}

function stop() {
  playing = false;
  $("sample-play").setAttribute("aria-pressed", "false");
  $("sample-play").textContent = "Play";
}

async function play() {
  if (playing || motion.matches || !info.samples.length) return stop();
  playing = true;
  $("sample-play").setAttribute("aria-pressed", "true");
  $("sample-play").textContent = "Pause";
  await choose("samples");
  while (playing) {
    await new Promise((resolve) => setTimeout(resolve, FRAME));
    if (playing) await step(1);
  }
}

// ---- selection

function select(threshold) {
  selection.threshold = Number(threshold);
  page = 0;
  const { n, purity, completeness } = selection.expected();
  const said = selection.threshold.toFixed(2);
  $("threshold-value").textContent = said;
  $("threshold").setAttribute("aria-valuetext", `p_blend above ${said}, ${n} sources`);
  $("summary").textContent = `${n} of ${info.sources} sources` +
    (n ? `: expected purity ${purity.toFixed(3)}, completeness ${completeness.toFixed(3)}` : "");
  $("tradeoff").replaceChildren(tradeoff(selection));
  for (const kind of ["fits", "csv", "reg"]) $(`export-${kind}`).href = `/selection.${kind}?threshold=${selection.threshold}`;
  list();
  map.redraw();
}

function list() {
  const n = selection.count(), pages = Math.max(1, Math.ceil(n / ROWS));
  page = Math.min(Math.max(page, 0), pages - 1);
  const rows = [...selection.order.slice(page * ROWS, Math.min((page + 1) * ROWS, n))].map((k) => {
    const row = element("tr"), first = element("td"), id = sources.id[k];
    first.append(element("button", id, { ariaLabel: `Open galaxy ${id}`, onclick: () => openCard(k, true) }));
    row.append(first, ...["p_blend", "flux", "x", "y"].map((name) => element("td", short(sources[name][k]))));
    row.classList.toggle("current", k === opened);
    return row;
  });
  $("list").tBodies[0].replaceChildren(...rows);
  $("list-page").textContent = `${page + 1} of ${pages}`;
  $("list-previous").disabled = page === 0;
  $("list-next").disabled = page === pages - 1;
}

// ---- the card of one galaxy

const openCard = told(async (k, centre = false) => {
  const card = await ask(`/source/${sources.id[k]}`);
  opened = k;
  const drawn = "flux" in card.draws;
  map.draws = drawn ? card.draws : Object.fromEntries(["x", "y", "a", "b", "angle"].map((name) => [name, [sources[name][k]]]));
  $("card-title").textContent = `Galaxy ${card.id}`;
  $("card-flags").replaceChildren(...card.flags.map(([name, meaning]) => element("li", `${name}: ${meaning}`)));
  showSiblings(card.siblings);
  $("card-plot").replaceChildren(
    drawn ? corner(card.draws) : element("p", "No posterior draws were kept: segment with --keep-posterior 64."),
    element("figcaption", drawn ? `${card.draws.flux.length} joint draws; the map shows their footprints.` : "", { className: "note" }));
  showValues(card.values);
  $("card").hidden = false;
  if (centre) map.goTo(sources.x[k], sources.y[k], motion.matches);
  list();
  map.redraw();
  $("card-title").focus();
});

function showSiblings(siblings) {
  const buttons = siblings.slice(0, 30).map((id) =>
    element("button", id, { ariaLabel: `Open sibling ${id}`, onclick: () => openCard(sources.id.indexOf(id), true) }));
  const more = siblings.length > 30 ? ` and ${siblings.length - 30} more` : "";
  $("card-siblings").replaceChildren(siblings.length ? "Siblings, whose footprints touch: " : "No siblings.", ...buttons, more);
}

function showValues(values) {
  const byName = Object.fromEntries(values.map((one) => [one.name, one]));
  const rows = values.filter((one) => !(one.name.endsWith("_err") || one.name === "id")).map((one) => {
    const row = element("tr", "", { title: one.description });
    const error = byName[`${one.name}_err`];
    row.append(element("th", one.name, { scope: "row" }), element("td", `${measured(one, error)} ${one.unit}`));
    return row;
  });
  $("card-values").tBodies[0]?.remove();
  $("card-values").createTBody().append(...rows);
}

function measured({ name, value }, error) {
  if (value === null || ["ra", "dec"].includes(name)) return value?.toFixed(6) ?? "–";
  if (!error?.value) return short(value);
  const digits = Math.min(Math.max(1 - Math.floor(Math.log10(error.value)), 0), 8);
  return `${value.toFixed(digits)} ± ${error.value.toFixed(digits)}`;
}

function closeCard() {
  if ($("card").hidden) return;
  $("card").hidden = true;
  opened = map.draws = null;
  list();
  map.redraw();
  map.viewer.canvas.focus();
}

// The next galaxy of the selection.
function openNext(by) {
  const n = selection.count();
  if (!n) return;
  const here = selection.order.subarray(0, n).indexOf(opened ?? -1);
  const next = here < 0 ? 0 : (here + by + n) % n;
  page = Math.floor(next / ROWS);
  openCard(selection.order[next], true);
}

// ---- positions

let reading = false, waiting = null;
async function readPixel(position) {
  waiting = position;
  if (reading) return;
  reading = true;
  while (waiting) {
    const { x, y } = waiting;
    waiting = null;
    try {
      const { ra, dec, ...values } = await ask(`/pixel?x=${x}&y=${y}`);
      const sky = ra == null ? "" : `   RA ${ra.toFixed(6)}  Dec ${dec.toFixed(6)}`;
      const said = Object.entries(values).map(([name, value]) => `   ${name} ${short(value)}`).join("");
      $("pixel").textContent = `x ${x.toFixed(1)}  y ${y.toFixed(1)}${sky}${said}`;
    } catch (error) {
      say(error.message, true);
    }
  }
  reading = false;
}

const goTo = told(async () => {
  const query = new URLSearchParams({ q: $("goto-text").value, frame: $("goto-frame").value });
  const { x, y } = await ask(`/goto?${query}`);
  map.goTo(x, y, motion.matches);
  say(`At x ${x.toFixed(1)}, y ${y.toFixed(1)}`);
});

function openAt(position) {
  const k = map.pick(position);
  if (k >= 0) openCard(k);
}

// ---- keyboard

const toggle = (id) => $(id).click();
const nudge = (by) => {
  $("threshold").value = Number($("threshold").value) + by;
  $("threshold").dispatchEvent(new Event("input"));
};
const nth = (k) => document.querySelectorAll('input[name="layer"]')[k]?.click();
const KEYS = [
  ["← ↑ → ↓", "move the map, when it has the focus"],
  ["Enter", "open the galaxy in the centre of the map"],
  ["+", "zoom in", () => map.zoomBy(1.5)],
  ["-", "zoom out", () => map.zoomBy(1 / 1.5)],
  ["0", "show all", () => map.home(motion.matches)],
  ...[1, 2, 3, 4, 5].map((k) => [String(k), `layer ${k}`, () => nth(k - 1)]),
  [",", "previous sample", () => step(-1)],
  [".", "next sample", () => step(1)],
  ["p", "play the samples, or pause", play],
  ["[", "lower threshold", () => nudge(-0.05)],
  ["]", "higher threshold", () => nudge(0.05)],
  ["h", "hide what is not selected, or show it", () => toggle("hide-others")],
  ["o", "show footprints, or not", () => toggle("show-sources")],
  ["n", "next galaxy of the selection", () => openNext(1)],
  ["b", "the one before", () => openNext(-1)],
  ["g", "go to a position", () => $("goto-text").focus()],
  ["Escape", "close the card"],
  ["?", "this list", () => { $("help").open = !$("help").open; }],
];

function onKey(event) {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.key === "Escape") return closeCard();
  const onMap = document.activeElement === map.viewer.canvas;
  if (event.key === "Enter" && onMap) return openAt(map.centre());
  const typing = document.activeElement.matches("input:not([type]), select");
  const action = KEYS.find(([key]) => key === event.key)?.[2];
  if (!action || typing || !$("keys-on").checked) return;
  event.preventDefault();
  action();
}

// ---- start

async function start() {
  history.replaceState(null, "", "/"); // the token has become a cookie
  info = await ask("/info");
  const numbers = new Float32Array(await ask("/catalogue", "arrayBuffer"));
  sources = Object.fromEntries(info.columns.map((name, k) => [name, numbers.subarray(k * info.sources, (k + 1) * info.sources)]));
  selection = new Selection(sources);
  map = new SkyMap($("map"), $("overlay"), info, motion.matches);
  map.sources = sources;
  map.isSelected = (k) => selection.has(k);
  map.isShown = (k) => $("show-sources").checked && (!$("hide-others").checked || selection.has(k));
  document.title = `${info.image ?? info.folder} – probablend`;
  $("name").textContent = `${info.image ?? info.folder}, ${info.width} × ${info.height} pixels, ${info.sources} sources`;
  $("goto-frame").value = info.sky ? "sky" : "pixel";
  $("goto-frame").options[0].disabled = !info.sky;
  for (const [said, value] of info.provenance) $("provenance").append(element("dt", said), element("dd", value));
  for (const [key, said] of KEYS) {
    const term = element("dt");
    term.append(element("kbd", key));
    $("keys").append(term, element("dd", said));
  }
  makeLayers();
  listen();
  select($("threshold").value);
  await choose(info.layers[0].name);
  document.body.dataset.ready = "true";
}

function listen() {
  const canvas = map.viewer.canvas;
  canvas.setAttribute("role", "application");
  canvas.setAttribute("aria-label", "Image. Arrows move, plus and minus zoom, Enter opens the galaxy in the centre.");
  const showCross = () => canvas.parentElement.closest("main").classList.toggle("keyboard", canvas.matches(":focus-visible"));
  for (const event of ["focus", "blur"]) canvas.addEventListener(event, showCross);
  map.viewer.addHandler("canvas-click", (event) => {
    if (event.quick) openAt(map.toImage(event.position));
  });
  canvas.addEventListener("mousemove", (event) => {
    const box = canvas.getBoundingClientRect();
    const at = map.toImage(new OpenSeadragon.Point(event.clientX - box.left, event.clientY - box.top));
    const inside = at.x >= -0.5 && at.y >= -0.5 && at.x < info.width - 0.5 && at.y < info.height - 0.5;
    if (inside) readPixel(at);
  });
  document.addEventListener("keydown", onKey);
  $("threshold").addEventListener("input", (event) => select(event.target.value));
  for (const id of ["hide-others", "show-sources"]) $(id).addEventListener("change", () => map.redraw());
  const clicks = {
    "zoom-in": () => map.zoomBy(1.5), "zoom-out": () => map.zoomBy(1 / 1.5),
    "zoom-home": () => map.home(motion.matches), "card-close": closeCard, "sample-play": play,
    "sample-previous": () => step(-1), "sample-next": () => step(1),
    "list-previous": () => { page--; list(); }, "list-next": () => { page++; list(); },
  };
  for (const [id, action] of Object.entries(clicks)) $(id).addEventListener("click", action);
  $("goto").addEventListener("submit", (event) => {
    event.preventDefault();
    goTo();
  });
}

told(start)();
