"use strict";

// State is what the address says, and nothing else: every change writes the address, and a new address draws the page.

let data = JSON.parse(document.getElementById("data").textContent);

const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C564B"];
const SHAPES = ["circle", "square", "triangle-up", "cross", "triangle-down", "triangle-right", "triangle-left", "diamond"];
const INK = "#222222";
const LAYERS = { pruned: "pruned networks", dense: "dense networks", published: "published, on a V100" };
const COLUMNS = [
  { key: "label", title: "Method" },
  { key: "model", title: "Network" },
  { key: "data", title: "Data" },
  { key: "target", title: "Target" },
  { key: "seed", title: "Seed" },
  { key: "top1", title: "Top-1 %", digits: 2 },
  { key: "macs_kept", title: "MACs %", digits: 1 },
  { key: "params_kept", title: "Params %", digits: 1 },
  { key: "memory", title: "Memory kB", digits: 1 },
  { key: "speed", title: "Speed", digits: 2 },
  { key: "images_per_second", title: "Images/s", digits: 0 },
];

const $ = (id) => document.getElementById(id);
const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const narrow = () => document.documentElement.clientWidth <= 720;

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined).map(asNode));
  return made;
}

function asNode(child) {
  return child instanceof Node ? child : document.createTextNode(String(child));
}

// ---- state -----------------------------------------------------------------------------------------------------------

function defaults() {
  const own = data.rows.filter((row) => row.layer !== "published");
  const devices = new Set(own.map((row) => row.device).filter(Boolean));
  const timed = own.filter((row) => isNumber(row.images_per_second));
  // Throughputs of several devices do not belong on one axis.
  const x = devices.size === 1 && 2 * timed.length >= own.length ? "images_per_second" : "macs_kept";
  return { x, y: "top1", log: null, points: "mean", layers: ["pruned", "dense"], front: true, run: null, sort: null, down: false, filters: {} };
}

function read() {
  const state = defaults();
  const given = new URLSearchParams(location.hash.slice(1));
  const axes = data.axes.map((axis) => axis.key);
  for (const key of ["x", "y"]) if (axes.includes(given.get(key))) state[key] = given.get(key);
  if (["0", "1"].includes(given.get("log"))) state.log = given.get("log") === "1";
  if (given.get("points") === "run") state.points = "run";
  if (given.has("layers")) state.layers = given.get("layers").split(",").filter((layer) => layer in LAYERS);
  if (given.get("front") === "0") state.front = false;
  if (given.has("run")) state.run = given.get("run");
  if (COLUMNS.some((column) => column.key === given.get("sort"))) state.sort = given.get("sort");
  state.down = given.get("down") === "1";
  for (const key of Object.keys(data.filters)) if (given.has(key)) state.filters[key] = given.getAll(key);
  if (state.log === null) state.log = axisOf(state.x).is_log;
  return state;
}

function write(changes) {
  const state = { ...read(), ...changes };
  const usual = defaults();
  if (changes.x !== undefined && changes.log === undefined) state.log = axisOf(state.x).is_log;
  const given = new URLSearchParams();
  for (const key of ["x", "y", "points", "run", "sort"]) if (state[key] && state[key] !== usual[key]) given.set(key, state[key]);
  if (state.log !== axisOf(state.x).is_log) given.set("log", state.log ? "1" : "0");
  if (String(state.layers) !== String(usual.layers)) given.set("layers", state.layers);
  if (!state.front) given.set("front", "0");
  if (state.sort && state.down) given.set("down", "1");
  for (const [key, values] of Object.entries(state.filters)) for (const value of values) given.append(key, value);
  const address = "#" + given;
  if (address === (location.hash || "#")) draw();
  else location.hash = address; // the browser then says "hashchange"
}

function axisOf(key) {
  return data.axes.find((axis) => axis.key === key);
}

// ---- rows and points -------------------------------------------------------------------------------------------------

function shown(state) {
  return data.rows.filter(
    (row) =>
      state.layers.includes(row.layer) &&
      Object.entries(state.filters).every(([key, values]) => values.includes(String(row[key] ?? "")) || passes(row, key))
  );
}

// What dense networks do not have, filters do not ask of them.
function passes(row, key) {
  return row.layer === "dense" && ["objective", "target", "method"].includes(key);
}

function cells(state) {
  const rows = shown(state);
  if (state.points === "run") return rows.map((row) => ({ ...row, runs: [row] }));
  const found = new Map();
  for (const row of rows) {
    const key = JSON.stringify([row.layer, row.setting, row.model, row.label, row.objective, row.target, row.device]);
    if (!found.has(key)) found.set(key, []);
    found.get(key).push(row);
  }
  return [...found.values()].map((runs) => {
    const cell = { ...runs[0], runs };
    const numbers = new Set([...data.axes.map((axis) => axis.key), ...COLUMNS.filter((c) => c.digits !== undefined).map((c) => c.key)]);
    for (const key of numbers) {
      const values = runs.map((row) => row[key]).filter(isNumber);
      delete cell[key];
      if (values.length) {
        cell[key] = mean(values);
        if (values.length > 1) cell[key + "_sd"] = deviation(values);
      }
    }
    const seeds = [...new Set(runs.map((row) => row.seed))];
    cell.seed = seeds.length > 1 ? `${seeds.length} seeds` : seeds[0];
    return cell;
  });
}

function mean(values) {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

function deviation(values) {
  const centre = mean(values);
  return Math.sqrt(values.reduce((sum, value) => sum + (value - centre) ** 2, 0) / (values.length - 1));
}

function text(cell, key, digits) {
  if (!isNumber(cell[key])) return cell[key] ?? "";
  const number = (value) => value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  const spread = cell[key + "_sd"];
  return number(cell[key]) + (isNumber(spread) ? " ± " + number(spread) : "");
}

function digitsFor(value) {
  return isNumber(value) ? Math.max(0, 3 - Math.floor(Math.log10(Math.abs(value) || 1))) : 2;
}

function frontOf(points, x, y) {
  const better = (a, b, axis) => (axis.less_is_better ? a <= b : a >= b);
  const beats = (a, b) =>
    better(a[x.key], b[x.key], x) && better(a[y.key], b[y.key], y) && (a[x.key] !== b[x.key] || a[y.key] !== b[y.key]);
  const own = points.filter((point) => point.layer !== "published");
  return own.filter((point) => !own.some((other) => beats(other, point))).sort((a, b) => a[x.key] - b[x.key]);
}

// ---- the chart -------------------------------------------------------------------------------------------------------

const CONFIG = {
  font: "system-ui, 'DejaVu Sans', sans-serif",
  axis: { labelColor: INK, titleColor: INK, titleFontWeight: "normal", gridColor: "#e8e8e8", domainColor: "#8a8a8a", tickColor: "#8a8a8a", labelFontSize: 12, titleFontSize: 13 },
  legend: { labelColor: INK, titleColor: INK, labelFontSize: 12, labelLimit: 300, symbolSize: 80 },
  view: { stroke: null },
  concat: { spacing: 6 },
};

// A method has the same look whatever is filtered away.
function looks() {
  const methods = [...new Set(data.rows.filter((row) => row.layer !== "dense").map((row) => row.method))];
  const look = new Map(methods.map((name, k) => [name, { colour: COLOURS[k % COLOURS.length], shape: SHAPES[k % SHAPES.length] }]));
  look.set("Dense", { colour: "#000000", shape: "M0,-1.1L0.3,-0.35L1.05,-0.35L0.45,0.15L0.65,0.9L0,0.45L-0.65,0.9L-0.45,0.15L-1.05,-0.35L-0.3,-0.35Z" });
  return look;
}

function chart(state, all) {
  const x = axisOf(state.x), y = axisOf(state.y);
  const points = all
    .filter((cell) => isNumber(cell[x.key]) && isNumber(cell[y.key]) && (!state.log || cell[x.key] > 0))
    .map((cell) => {
      const spread = cell[y.key + "_sd"];
      return {
        id: cell.runs[0].id,
        layer: cell.layer,
        method: cell.method,
        [x.key]: cell[x.key],
        [y.key]: cell[y.key],
        low: isNumber(spread) ? cell[y.key] - spread : null,
        high: isNumber(spread) ? cell[y.key] + spread : null,
        chosen: cell.runs.some((row) => row.id === state.run),
        Method: cell.label,
        Network: `${cell.model}, ${cell.data}`,
        Target: [cell.target, cell.objective].filter(Boolean).join(" of ") || "none",
        Seeds: cell.runs.length > 1 ? cell.runs.map((row) => row.seed).join(", ") : String(cell.seed ?? ""),
        Across: `${text(cell, x.key, digitsFor(cell[x.key]))} (${x.title})`,
        Up: `${text(cell, y.key, 2)} (${y.title})`,
      };
    });
  const look = looks();
  const methods = [...look.keys()].filter((name) => points.some((point) => point.method === name));
  const scale = (what) => ({ domain: methods, range: methods.map((name) => look.get(name)[what]) });
  const across = { field: x.key, type: "quantitative", title: x.title, scale: state.log ? { type: "log", nice: false, padding: 12 } : { zero: false, padding: 12 }, axis: { tickCount: narrow() ? 5 : 8, format: "~r", labelOverlap: true } };
  const up = { field: y.key, type: "quantitative", title: y.title, scale: { zero: false, padding: 10 } };
  const columns = Math.max(1, Math.floor($("chart").clientWidth / 240));
  const legend = { title: null, orient: "bottom", columns, symbolLimit: 100, direction: "vertical" };
  const layers = [];
  if (state.front) {
    const step = x.less_is_better ? "step-after" : "step-before";
    layers.push({ data: { values: frontOf(points, x, y) }, mark: { type: "line", interpolate: step, color: "#8a8a8a", strokeDash: [5, 3], tooltip: false, clip: true }, encoding: { x: across, y: up } });
  }
  const spread = points.filter((point) => point.low !== null);
  if (spread.length) layers.push({ data: { values: spread }, mark: { type: "rule", strokeWidth: 1.2, opacity: 0.7, tooltip: false }, encoding: { x: across, y: { ...up, field: "low" }, y2: { field: "high" }, color: { field: "method", type: "nominal", scale: scale("colour"), legend } } });
  const chosen = points.filter((point) => point.chosen);
  if (chosen.length) layers.push({ data: { values: chosen }, mark: { type: "point", size: 330, stroke: INK, strokeWidth: 2.5, filled: false, shape: "circle", tooltip: false }, encoding: { x: across, y: up } });
  layers.push({
    mark: { type: "point", filled: true, opacity: 0.9, cursor: "pointer", stroke: "#ffffff", strokeWidth: 0.6 },
    encoding: {
      x: across,
      y: up,
      color: { field: "method", type: "nominal", scale: scale("colour"), legend },
      shape: { field: "method", type: "nominal", scale: scale("shape"), legend },
      size: { value: 85 },
      tooltip: ["Method", "Network", "Target", "Seeds", "Across", "Up"].map((field) => ({ field, type: "nominal" })),
      description: { field: "Method", type: "nominal" },
    },
  });
  const spec = { data: { values: points }, width: "container", height: narrow() ? 300 : 400, autosize: { type: "fit-x", contains: "padding" }, layer: layers, config: CONFIG };
  notes(state, all, points);
  return put($("chart"), points.length ? spec : null, `${y.title} against ${x.title}: ${points.length} points`).then((view) => {
    if (view) view.addEventListener("click", (event, item) => item && item.datum && item.datum.id && choose(item.datum.id));
  });
}

function notes(state, all, points) {
  const said = [];
  if (!points.length) said.push("Nothing to show here: choose other axes, or show more.");
  const without = all.length - points.length;
  if (points.length && without) said.push(`${without} not in the chart: their records lack one of these numbers.`);
  const devices = new Set(points.length ? all.filter((cell) => isNumber(cell.images_per_second)).map((cell) => cell.device) : []);
  if (["images_per_second", "latency_ms"].includes(state.x) && devices.size > 1) said.push(`Timed on ${devices.size} devices or batches, which do not compare: choose one under "${data.filters.device}".`);
  if (new Set(points.filter((point) => point.layer !== "published").map((point) => point.Network)).size > 1) said.push("Several networks or data sets are shown together.");
  if (all.some((cell) => cell.scale === "reduced" || cell.scale === "smoke")) said.push("Reduced scale: less data or training than the papers', so no reproduction of their numbers.");
  if (state.points === "mean") said.push("Bars: one standard deviation over seeds.");
  $("note").textContent = said.join(" ");
}

const drawn = new Map(); // element -> a number that tells a late drawing that it is not wanted any more

async function put(where, spec, label) {
  const turn = (drawn.get(where) || 0) + 1;
  drawn.set(where, turn);
  if (spec === null) {
    where.replaceChildren();
    return null;
  }
  const fresh = element("div", { style: "width:100%" });
  where.append(fresh);
  const made = await vegaEmbed(fresh, { ...spec, description: label }, { actions: false, renderer: "svg" });
  if (drawn.get(where) !== turn) {
    made.finalize();
    fresh.remove();
    return null;
  }
  where.replaceChildren(fresh);
  return made.view;
}

// ---- the table -------------------------------------------------------------------------------------------------------

function table(state, all) {
  const sorted = [...all];
  if (state.sort) {
    const value = (cell) => cell[state.sort];
    sorted.sort((a, b) => {
      const [p, q] = [value(a), value(b)];
      if (p === undefined || q === undefined) return (p === undefined) - (q === undefined); // unknown ones come last
      const order = isNumber(p) && isNumber(q) ? p - q : String(p).localeCompare(String(q), "en", { numeric: true });
      return state.down ? -order : order;
    });
  }
  const [head, body] = [$("table").tHead, $("table").tBodies[0]];
  head.replaceChildren(
    element("tr", {}, ...COLUMNS.map((column) => {
      const mine = state.sort === column.key;
      const turn = () => write(mine && state.down ? { sort: null, down: false } : { sort: column.key, down: mine });
      const order = mine ? (state.down ? "descending" : "ascending") : "none";
      return element("th", { class: column.digits === undefined ? null : "number", "aria-sort": order, scope: "col" },
        element("button", { type: "button", onclick: turn }, column.title, mine ? (state.down ? " ▼" : " ▲") : ""));
    }))
  );
  body.replaceChildren(...sorted.map((cell) =>
    element("tr", { "aria-selected": String(cell.runs.some((row) => row.id === state.run)), "data-id": cell.runs[0].id },
      ...COLUMNS.map((column, k) => {
        const content = text(cell, column.key, column.digits ?? 0);
        if (k) return element("td", { class: column.digits === undefined ? null : "number" }, content);
        const button = element("button", { type: "button", onclick: () => choose(cell.runs[0].id) }, content);
        return element("td", {}, button, ...flags(cell));
      }))
  ));
}

function flags(cell) {
  const found = [];
  if (cell.runs.some((row) => row.differs)) found.push(["differs", "Another record has this fingerprint and other results"]);
  if (cell.runs.some((row) => row.noisy)) found.push(["noisy", "The machine was not quiet while this was timed"]);
  return found.flatMap(([word, title]) => [" ", element("span", { class: "flag", title }, word)]);
}

// ---- one run ---------------------------------------------------------------------------------------------------------

function choose(id) {
  write({ run: read().run === id ? null : id });
}

async function details(state, all) {
  const where = $("run");
  const row = data.rows.find((each) => each.id === state.run);
  where.hidden = !row;
  if (!row) {
    where.replaceChildren();
    return;
  }
  const cell = all.find((each) => each.runs.some((one) => one.id === row.id));
  const others = cell && cell.runs.length > 1 ? cell.runs : [];
  const run = row.run;
  const facts = [
    ["Network", row.model],
    ["Data", `${row.data}, ${row.scale} scale`],
    ["Target", [row.target, row.objective].filter(Boolean).join(" of ")],
    ["Top-1", isNumber(row.top1) && `${row.top1.toFixed(2)} %` + (row.n_eval ? ` of ${row.n_eval.toLocaleString("en")} test images` : "")],
    ["MACs", isNumber(row.macs) && `${text(row, "macs", 2)} million` + (isNumber(row.macs_kept) ? `, ${row.macs_kept.toFixed(1)} % of the dense network's` : "")],
    ["Parameters", isNumber(row.params) && `${text(row, "params", 3)} million` + (isNumber(row.params_kept) ? `, ${row.params_kept.toFixed(1)} %` : "")],
    ["Peak activation memory", isNumber(row.memory) && `${text(row, "memory", 1)} kB for an image, float32`],
    ["Throughput", isNumber(row.images_per_second) && `${text(row, "images_per_second", 0)} images/s` + (isNumber(row.speed) ? `, ${row.speed.toFixed(2)} times the dense network's` : "")],
    ["Timed on", row.device],
    ["Training images", run && Object.entries(run.images).map(([what, n]) => `${what} ${n.toLocaleString("en")}`).join(", ")],
    ["Made", run && `${run.date}, ${(run.seconds / 60).toFixed(1)} minutes on ${run.computed_on}`],
    ["Folder", row.folder],
  ].filter(([, value]) => value);
  const close = element("button", { type: "button", onclick: () => write({ run: null }) }, "Close");
  const seeds = others.length ? element("p", {}, "Seeds: ", ...others.flatMap((one) => [
    element("button", { type: "button", "aria-pressed": String(one.id === row.id), onclick: () => one.id !== row.id && write({ run: one.id }) }, String(one.seed)), " "])) : null;
  const flagged = flags({ runs: [row] });
  const [widths, curves, cost, losses] = [1, 2, 3, 4].map(() => element("div"));
  const parts = [];
  if (run) {
    parts.push(element("h3", {}, "To repeat it"), element("pre", {}, run.command));
    const left = element("div", {}, element("h3", {}, "Channels kept, layer by layer"), widths);
    const right = element("div", {},
      ...(run.curves.length ? [element("h3", {}, "Training loss, one stage after the other"), curves] : []),
      ...(run.pruning.length ? [element("h3", {}, "Pruning"), cost, losses] : []),
      element("h3", {}, "Configuration"), element("pre", { class: "config" }, run.config));
    parts.push(element("div", { class: "parts" }, left, right));
  }
  where.replaceChildren(
    element("div", { class: "top" }, element("h2", {}, row.label + (row.seed === undefined ? "" : `, seed ${row.seed}`), ...flagged), close),
    ...(seeds ? [seeds] : []),
    element("dl", {}, ...facts.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)])),
    ...parts
  );
  if (!run) return;
  await put(widths, picture(run.layers, widths.clientWidth), "Channels kept in each layer; lines join layers that are tied");
  if (run.curves.length) await put(curves, lossChart(run.curves), "Training loss over epochs");
  const [kept, lost] = [true, false].map((isCost) => run.pruning.filter((point) => (point.what === "cost kept") === isCost));
  if (kept.length) await put(cost, pruningChart(kept, { title: "cost kept", axis: { format: ".0%" } }, null), "Cost kept after each iteration");
  if (lost.length) await put(losses, pruningChart(lost, { title: "loss" }, { title: null, orient: "bottom", direction: "vertical" }), "Loss in each iteration");
}

const SAID = 82; // pixels beside a bar, for the numbers of channels

// What all names begin with, up to an underscore: "features_".
function commonPrefix(names) {
  let n = names.length > 1 ? Math.min(...names.map((name) => name.length)) : 0;
  while (n && !(names[0][n - 1] === "_" && names.every((name) => name.startsWith(names[0].slice(0, n))))) n -= 1;
  return n ? names[0].slice(0, n) : "";
}

function picture(layers, width) {
  const rows = layers.rows.map((row, k) => ({
    ...row, k,
    kept: row.dense ? (100 * row.final) / row.dense : 100,
    said: row.final === 0 ? `left out (${row.dense})` : row.dense === 0 ? `new (${row.final})` : `${row.final} of ${row.dense}`,
  }));
  const prefix = commonPrefix(rows.map((row) => row.layer));
  for (const row of rows) row.short = row.layer.slice(prefix.length);
  const most = Math.max(100, ...rows.map((row) => row.kept));
  const lanes = Math.max(0, ...layers.ties.map((tie) => tie.lane + 1));
  const names = Math.min(210, Math.max(60, Math.floor(width * 0.34)));
  const laneWidth = lanes * 12;
  const bars = Math.max(90, width - names - laneWidth - SAID - 30);
  const domain = rows.map((row) => row.k);
  const band = { field: "k", type: "ordinal", scale: { domain, padding: 0.18 }, title: null };
  const label = { labelExpr: `data("names")[datum.value].short`, labelLimit: names, ticks: false, domain: false };
  const left = {
    width: bars,
    height: { step: 17 },
    data: { name: "names", values: rows },
    encoding: { y: { ...band, axis: label } },
    layer: [
      { mark: { type: "bar", color: "#e3e3e3" }, transform: [{ filter: "datum.dense > 0" }], encoding: { x: { datum: 100, type: "quantitative", title: "% of the layer's channels", scale: { domain: [0, most * 1.0] } }, x2: { datum: 0 } } },
      { mark: { type: "bar", color: "#4a6f8a" }, encoding: { x: { field: "kept", type: "quantitative", title: "% of the layer's channels" }, tooltip: [{ field: "layer", title: "Layer" }, { field: "said", title: "Channels" }] } },
      { mark: { type: "text", align: "left", dx: 5, fontSize: 11, color: INK, clip: false }, encoding: { x: { datum: most }, text: { field: "said" } } },
    ],
  };
  const dots = layers.ties.flatMap((tie) => tie.at.map((k) => ({ k, lane: tie.lane, group: tie.group })));
  const lines = layers.ties.map((tie) => ({ k: tie.at[0], end: tie.at[tie.at.length - 1], lane: tie.lane, group: tie.group }));
  const place = { field: "k", type: "ordinal", scale: { type: "point", domain, padding: 0.5 }, axis: null };
  const lane = { field: "lane", type: "ordinal", scale: { type: "point", domain: [...Array(lanes).keys()], padding: 0.5 }, axis: null };
  const hover = [{ field: "group", title: "Tied with" }];
  const right = {
    width: laneWidth,
    height: { step: 17 },
    layer: [
      { data: { values: lines }, mark: { type: "rule", strokeWidth: 1.6, color: INK }, encoding: { x: lane, y: place, y2: { field: "end" }, tooltip: hover } },
      { data: { values: dots }, mark: { type: "point", filled: true, size: 34, color: INK, opacity: 1 }, encoding: { x: lane, y: place, tooltip: hover } },
    ],
  };
  return { hconcat: lanes ? [left, right] : [left], spacing: 10, config: CONFIG };
}

function lossChart(curves) {
  const ends = new Map();
  for (const point of curves) ends.set(point.stage, Math.max(ends.get(point.stage) || 0, point.epoch));
  let start = 0;
  const begins = new Map([...ends].map(([stage, end]) => { const at = start; start += end; return [stage, at]; }));
  const values = curves.map((point) => ({ ...point, at: point.epoch + begins.get(point.stage) }));
  return {
    data: { values }, width: "container", height: 170, autosize: { type: "fit-x", contains: "padding" },
    mark: { type: "line", point: { size: 18, color: "#4a6f8a" }, color: "#4a6f8a" },
    encoding: {
      x: { field: "at", type: "quantitative", title: "epochs" },
      y: { field: "loss", type: "quantitative", title: "training loss", scale: { zero: false } },
      detail: { field: "stage" },
      tooltip: [{ field: "stage", title: "Stage" }, { field: "epoch", title: "Epoch", format: ".2f" }, { field: "loss", title: "Loss", format: ".4f" }],
    },
    config: CONFIG,
  };
}

function pruningChart(values, y, legend) {
  const domain = [...new Set(values.map((row) => row.what))];
  return {
    data: { values }, width: "container", height: 120, autosize: { type: "fit-x", contains: "padding" },
    mark: { type: "line", point: true },
    encoding: {
      x: { field: "iteration", type: "ordinal", title: "iteration", axis: { labelAngle: 0 } },
      y: { field: "value", type: "quantitative", ...y },
      color: { field: "what", type: "nominal", scale: { domain, range: COLOURS.slice(0, domain.length) }, legend },
      shape: { field: "what", type: "nominal", scale: { domain, range: SHAPES.slice(0, domain.length) }, legend },
      tooltip: [{ field: "what", title: "What" }, { field: "iteration", title: "Iteration" }, { field: "value", title: "Value", format: ".4f" }],
    },
    config: CONFIG,
  };
}

// ---- controls --------------------------------------------------------------------------------------------------------

function controls() {
  for (const key of ["x", "y"]) {
    $(key).replaceChildren(...data.axes.map((axis) => element("option", { value: axis.key }, axis.title)));
    $(key).onchange = () => write({ [key]: $(key).value });
  }
  $("log").onchange = () => write({ log: $("log").checked });
  $("points").onchange = () => write({ points: $("points").value });
  $("front").onchange = () => write({ front: $("front").checked });
  $("reset").onclick = () => write({ filters: {}, layers: defaults().layers });
  const legend = $("layers").querySelector("legend");
  const present = new Set(data.rows.map((row) => row.layer));
  $("layers").replaceChildren(legend, ...Object.entries(LAYERS).filter(([layer]) => present.has(layer)).map(([layer, title]) =>
    element("label", {}, element("input", { type: "checkbox", value: layer, onchange: () => write({ layers: ticked($("layers")) }) }), title)));
  const open = new Set([...document.querySelectorAll("#filters details[open]")].map((each) => each.dataset.key));
  $("filters").replaceChildren(...Object.entries(data.filters).map(([key, title]) => filter(key, title, open.has(key))).filter(Boolean));
}

function filter(key, title, open) {
  const values = [...new Set(data.rows.map((row) => row[key]).filter((value) => value !== undefined && value !== null).map(String))];
  if (values.length < 2) return null;
  values.sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
  const box = element("div", { class: "choices" });
  box.append(...values.map((value) => element("label", {}, element("input", { type: "checkbox", value, onchange: () => {
    const chosen = ticked(box);
    const filters = { ...read().filters, [key]: chosen };
    if (!chosen.length) delete filters[key];
    write({ filters });
  } }), value)));
  return element("details", { "data-key": key, open }, element("summary", {}, title), box);
}

function ticked(where) {
  return [...where.querySelectorAll("input:checked")].map((box) => box.value);
}

function show(state) {
  for (const key of ["x", "y", "points"]) $(key).value = state[key];
  for (const key of ["log", "front"]) $(key).checked = state[key];
  for (const box of $("layers").querySelectorAll("input")) box.checked = state.layers.includes(box.value);
  for (const each of document.querySelectorAll("#filters details")) {
    const chosen = state.filters[each.dataset.key] || [];
    each.toggleAttribute("data-active", chosen.length > 0);
    for (const box of each.querySelectorAll("input")) box.checked = chosen.includes(box.value);
  }
}

// ---- what is under way, and what is wrong ----------------------------------------------------------------------------

function others() {
  const rows = data.under_way;
  $("under_way").hidden = !rows.length;
  $("under_way").querySelector("h2").textContent = LIVE ? "Under way" : "Begun, and without a record when this page was made";
  const [head, body] = [$("under_way").querySelector("thead"), $("under_way").querySelector("tbody")];
  const titles = ["Run", "Stage", "Epoch", "Training loss", "Last sign of life"];
  head.replaceChildren(element("tr", {}, ...titles.map((title) => element("th", { scope: "col" }, title))));
  body.replaceChildren(...rows.map((row) => {
    const epoch = isNumber(row.epoch) ? row.epoch.toFixed(2) + (row.of_epochs ? ` of ${row.of_epochs}` : "") : row.iteration ?? "";
    const ago = Date.now() / 1e3 - row.changed;
    const said = ago < 90 ? `${Math.max(0, Math.round(ago))} s ago` : ago < 5400 ? `${Math.round(ago / 60)} min ago` : new Date(1e3 * row.changed).toLocaleString("en");
    return element("tr", {}, ...[row.folder, row.stage ?? "", epoch, isNumber(row.training_loss) ? row.training_loss.toFixed(4) : row.training_loss ?? "", said].map((cell) => element("td", {}, cell)));
  }));
  $("problems").hidden = !data.problems.length;
  $("problems").querySelector("ul").replaceChildren(...data.problems.map((problem) => element("li", {}, problem)));
  const count = (layer) => data.rows.filter((row) => row.layer === layer).length;
  const parts = Object.keys(LAYERS).filter(count).map((layer) => `${count(layer)} ${layer}`);
  $("summary").textContent = `${parts.join(", ") || "no"} networks; made ${data.made.replace("T", " ").replace("+00:00", " UTC")}. Hover for numbers, click for the run.`;
}

let chosenBefore = null;

async function draw() {
  const state = read();
  const all = cells(state);
  show(state);
  table(state, all);
  await Promise.all([chart(state, all), details(state, all)]);
  if (state.run !== chosenBefore && !$("run").hidden) $("run").scrollIntoView({ block: "nearest" });
  chosenBefore = state.run;
}

async function look() {
  let said;
  try {
    const answer = await fetch("data.json", { cache: "no-store" });
    const news = await answer.text();
    if (news !== look.last) {
      look.last = news;
      const [rows, changed] = [JSON.stringify(data.rows), JSON.parse(news)];
      data = changed;
      if (JSON.stringify(data.rows) !== rows) {
        controls();
        await draw();
      }
    }
    others();
    said = `Live: looked at ${new Date().toLocaleTimeString("en")}, again every ${LIVE} s.`;
  } catch (error) {
    said = "The server that this page comes from does not answer: what is shown is what it last said.";
  }
  $("live").hidden = false;
  $("live").textContent = said;
  setTimeout(look, 1e3 * LIVE);
}

window.addEventListener("hashchange", draw);
let resized;
window.addEventListener("resize", () => { clearTimeout(resized); resized = setTimeout(draw, 150); });
controls();
others();
draw().then(() => { document.body.dataset.ready = "1"; });
if (LIVE) look();
