// Small figures: the trade-off of a selection, and the posterior of one source.

const SPACE = "http://www.w3.org/2000/svg";

function make(name, attributes = {}, text = "") {
  const node = document.createElementNS(SPACE, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.textContent = text;
  return node;
}

function canvas(width, height, label) {
  return make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
}

export function tradeoff(selection) {
  const { n, purity, completeness } = selection.expected();
  const said = n ? `; here purity ${purity.toFixed(2)}, completeness ${completeness.toFixed(2)}` : "";
  const svg = canvas(300, 170, `Expected completeness against expected purity as the threshold rises${said}`);
  const u = (v) => 40 + 250 * v, v = (w) => 135 - 125 * w;
  svg.append(make("path", { class: "axis", d: `M${u(0)} ${v(1)}V${v(0)}H${u(1)}` }));
  for (const tick of [0, 0.5, 1]) {
    svg.append(make("text", { x: u(tick), y: 149, "text-anchor": "middle" }, tick));
    svg.append(make("text", { x: 34, y: v(tick) + 4, "text-anchor": "end" }, tick));
  }
  svg.append(make("text", { x: u(0.5), y: 165, "text-anchor": "middle" }, "expected purity"));
  svg.append(make("text", { x: 12, y: v(0.5), "text-anchor": "middle", transform: `rotate(-90 12 ${v(0.5)})` }, "exp. completeness"));
  const points = Array.from({ length: 101 }, (_, k) => selection.expected(k / 100)).filter((e) => e.n);
  svg.append(make("polyline", { class: "curve", points: points.map((e) => `${u(e.purity)},${v(e.completeness)}`).join(" ") }));
  if (n) svg.append(make("circle", { class: "here", cx: u(purity), cy: v(completeness), r: 6 }));
  return svg;
}

const SHOWN = ["flux", "hlr", "g1", "g2"];
const CELL = 76, GAP = 6, LEFT = 4;

// Histograms of the draws on the diagonal, pairs of parameters below it.
export function corner(draws) {
  const size = LEFT + SHOWN.length * (CELL + GAP) + 14;
  const svg = canvas(size, size, `${draws.flux.length} posterior draws of ${SHOWN.join(", ")}: histograms and pairs`);
  const start = (k) => LEFT + k * (CELL + GAP);
  const scales = SHOWN.map((name) => {
    const values = draws[name].filter((w) => w !== null);
    const low = Math.min(...values), high = Math.max(...values);
    return { low, high, place: (w) => (w - low) / (high - low || 1) };
  });
  SHOWN.forEach((name, column) => {
    histogram(svg, draws[name], scales[column], start(column));
    svg.append(make("text", { x: start(column) + CELL, y: start(column) + 10, "text-anchor": "end" }, name));
    const bottom = start(SHOWN.length) + 6;
    svg.append(make("text", { x: start(column), y: bottom }, short(scales[column].low, 2)));
    svg.append(make("text", { x: start(column) + CELL, y: bottom, "text-anchor": "end" }, short(scales[column].high, 2)));
    for (let row = column + 1; row < SHOWN.length; row++) {
      svg.append(make("rect", { class: "axis", x: start(column), y: start(row), width: CELL, height: CELL }));
      draws[name].forEach((value, k) => {
        const other = draws[SHOWN[row]][k];
        if (value === null || other === null) return;
        svg.append(make("circle", {
          class: "dot", r: 1.6, cx: start(column) + 2 + (CELL - 4) * scales[column].place(value),
          cy: start(row) + CELL - 2 - (CELL - 4) * scales[row].place(other),
        }));
      });
    }
  });
  return svg;
}

function histogram(svg, values, scale, at) {
  const bins = new Array(10).fill(0);
  for (const w of values) if (w !== null) bins[Math.min(9, Math.floor(10 * scale.place(w)))]++;
  const top = Math.max(...bins), width = CELL / bins.length;
  bins.forEach((n, k) => {
    const height = (n / top) * (CELL - 14);
    svg.append(make("rect", { class: "column", x: at + k * width, y: at + CELL - height, width: width - 1, height }));
  });
  svg.append(make("path", { class: "axis", d: `M${at} ${at + CELL}h${CELL}` }));
}

export function short(value, digits = 4) {
  if (value === null || Number.isNaN(value)) return "–";
  return Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(digits)));
}
