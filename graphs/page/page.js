// The page in four parts: drawing, selection, table, tools. `state` holds what the reader chose.

const data = JSON.parse(document.getElementById("data").textContent);
const { nodes, edges } = data;
const byId = (id) => document.getElementById(id);
const state = { selected: null, hovered: null, filter: "", sort: "effect", down: true, zoom: 1, shown: 0 };

const incoming = nodes.map(() => []);
const outgoing = nodes.map(() => []);
edges.forEach((edge, i) => { outgoing[edge[0]].push(i); incoming[edge[1]].push(i); });
const outputs = nodes.filter((node) => node.kind === "logit");
const strongestEdge = edges.length ? Math.abs(edges[0][3]) : 1;
const strongestEffect = Math.max(
  ...nodes.filter((node) => node.kind !== "logit").map((node) => Math.abs(node.effect)), 1e-12);

// ---- small makers

function svg(tag, attributes, parent) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (parent) parent.append(element);
  return element;
}

function make(tag, text, parent, className) {
  const element = document.createElement(tag);
  if (text !== null) element.textContent = text;
  if (className) element.className = className;
  if (parent) parent.append(element);
  return element;
}

function number(value) {
  if (value === null) return "\u2013";
  const size = Math.abs(value);
  const text = value === 0 ? "0" : size >= 1e5 || size < 1e-3 ? size.toExponential(2) : size.toPrecision(4);
  return (value < 0 ? "\u2212" : "+") + text;
}

const signOf = (value) => (value < 0 ? "negative" : "positive");

// ---- drawing

const drawing = byId("drawing");
const top = 16; // room for the columns' names
const size = { width: data.width + 8, height: data.height + top };
drawing.setAttribute("viewBox", `0 ${-top} ${size.width} ${size.height}`);

for (const row of data.rows) {
  if (row.layer !== null && row.layer % 2 === 0) {
    svg("rect", { class: "band", x: 0, y: row.y, width: size.width, height: row.h }, drawing);
  }
}
for (const column of data.columns.slice(1)) {
  svg("line", { class: "rule", x1: column.x, x2: column.x, y1: -top, y2: data.height }, drawing);
}
const everyEdge = svg("g", { id: "every-edge" }, drawing);
const someEdges = svg("g", {}, drawing);
const nodeLayer = svg("g", {}, drawing);

function drawEdge(i, parent) {
  const [from, to, , contribution] = edges[i];
  const a = nodes[from], b = nodes[to];
  const y1 = a.y - a.h / 2, y2 = b.y + b.h / 2;
  const bend = Math.max(12, 0.45 * Math.abs(y1 - y2));
  const share = Math.abs(contribution) / strongestEdge;
  svg("path", {
    class: `edge ${signOf(contribution)}`,
    d: `M${a.x} ${y1}C${a.x} ${y1 - bend} ${b.x} ${y2 + bend} ${b.x} ${y2}`,
    "stroke-width": 0.4 + 3.6 * share,
    "stroke-opacity": parent === someEdges ? 0.85 : 0.12 + 0.68 * Math.sqrt(share),
  }, parent);
}

function drawEveryEdge() {
  everyEdge.replaceChildren();
  for (let i = state.shown - 1; i >= 0; i--) drawEdge(i, everyEdge); // strongest on top
}

function shapeOf(node, group) {
  const { x, y, w, h } = node, left = x - w / 2, top = y - h / 2;
  if (node.kind === "error") {
    const points = `${x},${top} ${left + w},${y} ${x},${top + h} ${left},${y}`;
    return svg("polygon", { class: "shape", points }, group);
  }
  if (node.kind === "bias") {
    return svg("ellipse", { class: "shape", cx: x, cy: y, rx: w / 2, ry: h / 2 }, group);
  }
  const rx = node.kind === "latent" ? 8 : 0;
  return svg("rect", { class: "shape", x: left, y: top, width: w, height: h, rx }, group);
}

const leading = { name: 8, label: 9.4, number: 9, word: 11, output: 12 };

const groups = nodes.map((node, i) => {
  const group = svg("g", { class: `node ${node.kind}`, tabindex: -1, role: "button" }, nodeLayer);
  const measured = node.measured === null ? "" : `, measured ${number(node.measured)}`;
  const word = node.word === null ? "" : ` on ${node.word}`;
  group.setAttribute("aria-label",
    `${node.name}${word}${node.label ? ", " + node.label : ""}, effect ${number(node.effect)}${measured}`);
  const shape = shapeOf(node, group);
  const strength = node.kind === "logit" ? 0 : Math.sqrt(Math.abs(node.effect) / strongestEffect);
  shape.style.setProperty("--tint", `var(--${signOf(node.effect)})`);
  shape.style.setProperty("--strength", strength.toFixed(3));
  const height = node.text.reduce((sum, [kind]) => sum + leading[kind], 0);
  let y = node.y - height / 2;
  for (const [kind, line] of node.text) {
    y += leading[kind];
    svg("text", { class: kind, x: node.x, y: y - 2 }, group).textContent = line;
  }
  group.addEventListener("mouseenter", () => { state.hovered = i; showEdges(); });
  group.addEventListener("mouseleave", () => { state.hovered = null; showEdges(); });
  group.addEventListener("click", () => select(state.selected === i ? null : i));
  group.addEventListener("keydown", (event) => onNodeKey(event, i));
  return group;
});

// Names of rows and columns, which stay in sight however far the reader scrolls.
const rowNames = svg("g", { class: "pinned" }, drawing);
svg("rect", { x: 0, y: -top, width: data.margin, height: size.height }, rowNames);
for (const row of data.rows) {
  svg("text", { x: 5, y: row.y + row.h / 2 + 3 }, rowNames).textContent = row.name;
}
const columnNames = svg("g", { class: "pinned" }, drawing);
svg("rect", { x: 0, y: -top, width: size.width, height: top }, columnNames);
for (const column of data.columns) {
  svg("text", { x: column.middle, y: -4.5, "text-anchor": "middle" }, columnNames).textContent = column.name;
}

function pinNames() {
  const canvas = byId("canvas");
  rowNames.setAttribute("transform", `translate(${canvas.scrollLeft / state.zoom} 0)`);
  columnNames.setAttribute("transform", `translate(0 ${canvas.scrollTop / state.zoom})`);
}

// ---- selection

function showEdges() {
  const focus = state.hovered ?? state.selected;
  drawing.classList.toggle("focused", focus !== null || state.filter !== "");
  someEdges.replaceChildren();
  const near = new Set([focus]);
  if (focus !== null) {
    for (const i of [...incoming[focus], ...outgoing[focus]].reverse()) {
      drawEdge(i, someEdges);
      near.add(edges[i][0]).add(edges[i][1]);
    }
  }
  groups.forEach((group, i) => {
    group.classList.toggle("dim", !matches(nodes[i]) || (focus !== null && !near.has(i)));
  });
}

function select(i, { scroll = false } = {}) {
  state.selected = i;
  state.hovered = null;
  groups.forEach((group, j) => group.classList.toggle("selected", j === i));
  if (i !== null) {
    takeFocus(i, false);
    if (scroll) groups[i].scrollIntoView({ block: "nearest", inline: "center" });
  }
  document.querySelectorAll("#latents tbody tr").forEach((row) => {
    row.classList.toggle("selected", Number(row.dataset.node) === i);
  });
  showEdges();
  showPanel();
}

function takeFocus(i, move) {
  groups.forEach((group, j) => group.setAttribute("tabindex", j === i ? 0 : -1));
  if (move) groups[i].focus();
}

function onNodeKey(event, i) {
  const towards = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] }[event.key];
  if (event.key === "Enter" || event.key === " ") select(state.selected === i ? null : i);
  else if (event.key === "Escape") select(null);
  else if (towards) {
    const next = nearest(i, towards);
    if (next !== null) takeFocus(next, true);
  } else return;
  event.preventDefault();
}

function nearest(i, [dx, dy]) {
  let best = null, least = Infinity;
  nodes.forEach((node, j) => {
    const x = node.x - nodes[i].x, y = node.y - nodes[i].y;
    const along = x * dx + y * dy, across = Math.abs(x * dy) + Math.abs(y * dx);
    if (j === i || along <= 0.5 || across > 3 * along) return;
    if (along + 2 * across < least) { least = along + 2 * across; best = j; }
  });
  return best;
}

function showPanel() {
  const panel = byId("panel");
  panel.replaceChildren();
  if (state.selected === null) {
    make("p", "Click a node to see its numbers, its strongest inputs and its strongest outputs. "
      + "Arrow keys move between nodes, Enter selects, Escape clears.", panel, "quiet");
    return;
  }
  const node = nodes[state.selected];
  make("h2", node.name, panel);
  if (node.word !== null) make("p", `on \u201c${node.word}\u201d, position ${node.pos}`, panel, "quiet");
  if (node.label) make("p", node.label, panel);
  const list = make("dl", null, panel);
  const facts = {
    activation: node.kind === "latent" ? node.act.toPrecision(4) : null,
    "change from the reference": node.change !== node.act ? number(node.change) : null,
    "attributed effect": node.kind === "logit" ? null : number(node.effect),
    "measured effect": node.kind === "logit" ? null : number(node.measured),
    influence: node.kind === "logit" ? null : node.influence.toFixed(4),
    value: node.kind === "logit" ? number(node.effect) : null,
    "weight in the metric": node.kind === "logit" && outputs.length > 1 ? number(node.grad) : null,
  };
  for (const [name, value] of Object.entries(facts)) {
    if (value === null) continue;
    make("dt", name, list);
    make("dd", value, list);
  }
  showNeighbours("Strongest inputs", incoming[state.selected], 0, panel);
  showNeighbours("Strongest outputs", outgoing[state.selected], 1, panel);
}

function showNeighbours(title, indices, end, panel) {
  if (!indices.length) return;
  const top = indices.slice(0, 12);
  make("h3", `${title} (${top.length} of ${indices.length}; contribution)`, panel);
  const list = make("ol", null, panel);
  for (const i of top) {
    const other = nodes[edges[i][end]];
    const button = make("button", null, make("li", null, list));
    button.type = "button";
    make("span", other.name, button);
    make("b", number(edges[i][3]), button, `${signOf(edges[i][3])}-text`);
    const [, , weight, , queryKey] = edges[i];
    const through = queryKey === null ? "" : `, through queries and keys ${number(queryKey)}`;
    make("small", `direct effect ${number(weight)}${through}${other.label ? "; " + other.label : ""}`, button);
    button.addEventListener("click", () => select(edges[i][end], { scroll: true }));
  }
}

// ---- table

const columns = [
  { key: "name", title: "latent" },
  { key: "pos", title: "token" },
  { key: "label", title: "label" },
  { key: "act", title: "activation", numeric: true },
  { key: "effect", title: "attributed", numeric: true },
  { key: "measured", title: "measured", numeric: true },
  { key: "influence", title: "influence", numeric: true },
];

function drawTable() {
  const table = byId("latents"), head = table.tHead, body = table.tBodies[0];
  head.replaceChildren();
  const titles = make("tr", null, head);
  for (const column of columns) {
    const cell = make("th", null, titles, column.numeric ? "right" : "");
    cell.scope = "col";
    if (state.sort === column.key) cell.setAttribute("aria-sort", state.down ? "descending" : "ascending");
    const button = make("button", column.title, cell);
    button.type = "button";
    button.addEventListener("click", () => sortBy(column));
  }
  body.replaceChildren();
  const rows = nodes.map((_, i) => i).filter((i) => nodes[i].kind === "latent" && matches(nodes[i]));
  for (const i of rows.sort(compare)) drawRow(i, body);
  if (!rows.length) make("td", "no latent matches", make("tr", null, body), "quiet").colSpan = columns.length;
}

function drawRow(i, body) {
  const node = nodes[i], row = make("tr", null, body, i === state.selected ? "selected" : "");
  row.dataset.node = i;
  const button = make("button", node.name, make("td", null, row));
  button.type = "button";
  make("td", `${node.word} (${node.pos})`, row);
  make("td", node.label ?? "", row, "wide");
  make("td", node.act.toPrecision(4), row, "right");
  make("td", number(node.effect), row, `right ${signOf(node.effect)}-text`);
  make("td", number(node.measured), row, node.measured === null ? "right quiet" : `right ${signOf(node.measured)}-text`);
  make("td", node.influence.toFixed(4), row, "right");
  row.addEventListener("click", () => select(i, { scroll: true }));
}

// Numbers by size, signs apart: what matters is how strong an effect is.
function compare(i, j) {
  const a = nodes[i][state.sort], b = nodes[j][state.sort];
  if (a === null || b === null) return (a === null) - (b === null);
  const order = typeof a === "number" ? Math.abs(a) - Math.abs(b) : a.localeCompare(b, "en", { numeric: true });
  return state.down ? -order : order;
}

function sortBy(column) {
  state.down = state.sort === column.key ? !state.down : Boolean(column.numeric);
  state.sort = column.key;
  drawTable();
  [...document.querySelectorAll("#latents th button")][columns.indexOf(column)].focus();
}

// ---- tools

function matches(node) {
  if (!state.filter) return true;
  return `${node.name} ${node.label ?? ""} ${node.word ?? ""}`.toLowerCase().includes(state.filter);
}

function setZoom(zoom) {
  const canvas = byId("canvas"), before = state.zoom;
  const x = (canvas.scrollLeft + canvas.clientWidth / 2) / before;
  const y = (canvas.scrollTop + canvas.clientHeight / 2) / before;
  state.zoom = Math.min(4, Math.max(0.1, zoom));
  drawing.setAttribute("width", size.width * state.zoom);
  drawing.setAttribute("height", size.height * state.zoom);
  canvas.scrollTo(x * state.zoom - canvas.clientWidth / 2, y * state.zoom - canvas.clientHeight / 2);
  pinNames();
}

const fitWidth = () => (byId("canvas").clientWidth - 2) / size.width;
const fitHeight = () => (parseFloat(getComputedStyle(byId("canvas")).maxHeight) - 2) / size.height;

// The slider runs over the logarithm of the number of edges: 0, 1, ... all.
function edgeCount(position) {
  return position === 0 ? 0 : Math.round(edges.length ** (position / 100));
}

function setEdges(position) {
  state.shown = Math.min(edges.length, edgeCount(position));
  const least = state.shown ? Math.abs(edges[state.shown - 1][3]) : null;
  byId("edge-count").textContent = least === null ? "none"
    : `${state.shown} of ${edges.length}, \u2265 ${least.toPrecision(2)}`;
  drawEveryEdge();
}

byId("edges").addEventListener("input", (event) => setEdges(Number(event.target.value)));
byId("filter").addEventListener("input", (event) => {
  state.filter = event.target.value.trim().toLowerCase();
  showEdges();
  drawTable();
});
byId("tools").addEventListener("submit", (event) => event.preventDefault());
byId("larger").addEventListener("click", () => setZoom(state.zoom * 1.25));
byId("smaller").addEventListener("click", () => setZoom(state.zoom / 1.25));
byId("fit").addEventListener("click", () => setZoom(Math.min(1.6, fitWidth(), fitHeight())));
byId("clear").addEventListener("click", () => {
  byId("filter").value = state.filter = "";
  drawTable();
  select(null);
});

const canvas = byId("canvas");
canvas.addEventListener("scroll", pinNames);
let drag = null;
canvas.addEventListener("pointerdown", (event) => {
  if (event.button !== 0 || event.pointerType !== "mouse" || event.target.closest(".node")) return;
  drag = { x: event.clientX + canvas.scrollLeft, y: event.clientY + canvas.scrollTop };
  canvas.classList.add("dragging");
});
window.addEventListener("pointermove", (event) => {
  if (drag) canvas.scrollTo(drag.x - event.clientX, drag.y - event.clientY);
});
window.addEventListener("pointerup", () => { drag = null; canvas.classList.remove("dragging"); });
canvas.addEventListener("wheel", (event) => {
  if (!event.ctrlKey) return;
  event.preventDefault();
  setZoom(state.zoom * Math.exp(-event.deltaY / 400));
}, { passive: false });

for (const sentence of data.caption) make("p", sentence, byId("caption"));
byId("provenance").querySelector("pre").textContent = JSON.stringify(data.provenance, null, 2);
byId("two-numbers").hidden = nodes.every((node) => node.measured === null);
const firstShown = Math.min(300, edges.length);
byId("edges").value = edges.length > 1 ? Math.round(100 * Math.log(firstShown) / Math.log(edges.length)) : 100;
setEdges(Number(byId("edges").value));
setZoom(Math.min(1.6, Math.max(0.85, Math.min(fitWidth(), fitHeight())))); // below that nothing can be read
canvas.scrollTo(canvas.scrollWidth, 0); // the output is at the upper right
takeFocus(nodes.indexOf(outputs[0]), false);
drawTable();
showPanel();
