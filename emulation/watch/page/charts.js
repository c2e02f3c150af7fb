// The charts of the page, drawn by Plotly.
import { byId, bytes, duration, latency, percent, stateText } from "./draw.js";

const KINDS = [ // of the timeline: key, text, colour, width in px, offset in rows
  ["train", "local steps", "--blue", 11, 0], ["mix", "mixing, deleting, saving", "--violet", 11, 0],
  ["wait", "waiting for neighbours", "--rule", 11, 0], ["send", "sending", "--green", 4, 0.34],
  ["stalled", "stalled", "--red", 5, -0.34],
];
const LOOKS = { // of a device in the graph, by look: text, colour, symbol
  alive: ["takes part", "--blue", "circle"], joined: ["has joined", "--green", "star"],
  doubt: ["suspected or stalled", "--orange", "diamond"], gone: ["gone", "--red", "x"],
};
const LATENCIES = [[0.01, "up to 10 ms", 1], [0.1, "up to 100 ms", 0.65], [Infinity, "longer", 0.35]];
const WIDTHS = [1.2, 2.5, 4.5];
const DASHES = ["solid", "dash", "dot", "dashdot"];
const HUES = ["--blue", "--red", "--green", "--violet", "--orange", "--grey"];
const MARKED = { leave: "leave", retire: "retire", crash: "crash", join: "join", return: "return" };
const CONFIG = { displayModeBar: false, responsive: true };

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const isNarrow = () => innerWidth < 820;

function look(device) {
  if (!device.alive) return "gone";
  if (device.state === "suspected" || device.state === "stalled") return "doubt";
  return device.joined ? "joined" : "alive";
}

function layout(height, more = {}) {
  const axis = { gridcolor: colour("--rule"), zeroline: false, linecolor: colour("--rule"), automargin: true,
    fixedrange: true };
  const { xaxis = {}, yaxis = {}, ...rest } = more;
  return {
    height, margin: { l: 10, r: 10, t: 10, b: 10 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: colour("--ink"), family: "system-ui, sans-serif", size: 12 }, showlegend: false,
    dragmode: false, hovermode: "closest", xaxis: { ...axis, ...xaxis }, yaxis: { ...axis, ...yaxis }, ...rest,
  };
}

function draw(id, traces, made, description) {
  byId(id).setAttribute("aria-label", description);
  window.Plotly.react(id, traces, made, CONFIG);
}

export function drawAll(state) {
  if (state.run.waiting || !window.Plotly) return;
  drawNetwork(state);
  drawTimeline(state);
  drawMatrix(state);
  drawCurves(state);
  if (state.decisions.length) drawResiduals(state);
}

export function drawKeys() {
  const swatch = (stroke, width, dash = "") => {
    const box = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    box.setAttribute("width", "22");
    box.setAttribute("height", "12");
    const line = document.createElementNS(box.namespaceURI, "path");
    line.setAttribute("d", "M1 6H21");
    line.setAttribute("stroke", stroke);
    line.setAttribute("stroke-width", width);
    if (dash) line.setAttribute("stroke-dasharray", dash);
    box.append(line);
    return box;
  };
  const key = (id, rows) => byId(id).replaceChildren(...rows.map(([box, text]) => {
    const item = document.createElement("li");
    item.append(box, document.createTextNode(text));
    return item;
  }));
  key("timeline-key", KINDS.map(([, text, hue, width]) => [swatch(colour(hue), width), text]));
  key("network-key", [
    ...Object.values(LOOKS).map(([text, hue, symbol]) => [sign(symbol, colour(hue)), text]),
    [swatch(colour("--ink"), 3), "learning link: wider with more bytes, paler with more latency"],
    [swatch(colour("--grey"), 1, "3 3"), "other messages only"],
  ]);
}

function sign(symbol, fill) {
  const shapes = {
    circle: "M11 1a5 5 0 1 0 .01 0z", diamond: "M11 0L17 6L11 12L5 6Z", x: "M6 1L16 11M16 1L6 11",
    star: "M11 0L12.8 4.2L17.2 4.4L13.8 7.2L15 11.6L11 9.1L7 11.6L8.2 7.2L4.8 4.4L9.2 4.2Z",
  };
  const box = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  box.setAttribute("width", "22");
  box.setAttribute("height", "12");
  const path = document.createElementNS(box.namespaceURI, "path");
  path.setAttribute("d", shapes[symbol]);
  path.setAttribute(symbol === "x" ? "stroke" : "fill", fill);
  path.setAttribute("stroke-width", "3");
  box.append(path);
  return box;
}

// -- the graph ----------------------------------------------------------------------------------------
function drawNetwork({ devices, links }) {
  const place = new Map(devices.map((device, at) => {
    const angle = Math.PI / 2 - (2 * Math.PI * at) / devices.length;
    return [device.id, [Math.cos(angle), Math.sin(angle)]];
  }));
  const edges = edgesOf(devices, links);
  const most = Math.max(1, ...edges.map((edge) => edge.sent));
  const bins = new Map();
  const scale = edges.length > 40 ? 0.5 : 1; // thick lines of a dense graph hide each other
  for (const edge of edges) {
    const width = edge.learning ? scale * WIDTHS[Math.min(2, Math.floor((3 * edge.sent) / most))] : 1;
    const opacity = edge.learning ? LATENCIES.find(([limit]) => (edge.latency ?? 0) <= limit)[2] : 0.5;
    const key = `${edge.learning} ${width} ${opacity}`;
    if (!bins.has(key)) bins.set(key, { learning: edge.learning, width, opacity, x: [], y: [] });
    const [a, b] = [place.get(edge.ends[0]), place.get(edge.ends[1])];
    bins.get(key).x.push(a[0], b[0], null);
    bins.get(key).y.push(a[1], b[1], null);
  }
  const lines = [...bins.values()].map(({ learning, width, opacity, x, y }) => ({
    x, y, mode: "lines", hoverinfo: "skip", opacity,
    line: { width, color: colour(learning ? "--ink" : "--grey"), dash: learning ? "solid" : "dot" },
  }));
  const middles = {
    x: edges.map(({ ends: [a, b] }) => (place.get(a)[0] + place.get(b)[0]) / 2),
    y: edges.map(({ ends: [a, b] }) => (place.get(a)[1] + place.get(b)[1]) / 2),
    text: edges.map((edge) => edge.text), hoverinfo: "text", mode: "markers", marker: { size: 14, opacity: 0 },
  };
  const nodes = {
    x: devices.map((device) => place.get(device.id)[0]), y: devices.map((device) => place.get(device.id)[1]),
    mode: "markers+text", text: devices.map((device) => device.id), hoverinfo: "text",
    hovertext: devices.map((device) => `${device.id}: ${stateText(device)}, round ${device.round ?? "–"}`),
    textposition: devices.map((device) => outward(place.get(device.id))),
    textfont: { size: 13, color: colour("--ink") },
    marker: {
      size: 20, opacity: 1, symbol: devices.map((device) => LOOKS[look(device)][2]),
      color: devices.map((device) => colour(LOOKS[look(device)][1])),
      line: { width: 1.5, color: colour("--panel") },
    },
  };
  const bare = { visible: false, range: [-1.3, 1.3] };
  const gone = devices.filter((device) => !device.alive).map((device) => device.id);
  draw("network", [...lines, middles, nodes], layout(isNarrow() ? 300 : 400, {
    xaxis: bare, yaxis: { ...bare, scaleanchor: "x" } }),
    `Graph of ${devices.length} devices; gone: ${gone.join(", ") || "none"}. The tables below have the figures.`);
}

function outward([x, y]) {
  if (Math.abs(x) > 0.6) return x > 0 ? "middle right" : "middle left";
  return y < 0 ? "bottom center" : "top center";
}

function edgesOf(devices, links) {
  const alive = new Map(devices.map((device) => [device.id, device]));
  const found = new Map();
  for (const [source, target, sent, median] of links) {
    if (!alive.get(source)?.alive || !alive.get(target)?.alive) continue;
    const ends = source < target ? [source, target] : [target, source];
    const key = ends.join(" ");
    const edge = found.get(key) ?? { ends, sent: 0, latency: null, text: "", learning: false };
    edge.sent += sent;
    edge.latency = median === null ? edge.latency : Math.max(edge.latency ?? 0, median);
    edge.text += `${edge.text ? "<br>" : ""}${source} to ${target}: ${bytes(sent)}, median ${latency(median)}`;
    edge.learning ||= alive.get(source).neighbours.includes(target) || alive.get(target).neighbours.includes(source);
    found.set(key, edge);
  }
  return [...found.values()];
}

// -- the timeline -------------------------------------------------------------------------------------
function drawTimeline({ devices, spans, run, feed }) {
  const length = Number(byId("window").value);
  const end = run.seconds;
  const start = length ? Math.max(0, end - length) : Math.min(end, ...spans.slice(0, 50).map((span) => span[2]));
  const row = new Map(devices.map((device, at) => [device.id, devices.length - 1 - at]));
  const traces = KINDS.map(([kind, text, hue, width, offset]) => {
    const trace = { x: [], y: [], text: [], mode: "lines", hoverinfo: "text", name: text,
      line: { width, color: colour(hue) } };
    for (const [device, what, first, last, round] of spans) {
      if (what !== kind || last < start || !row.has(device)) continue;
      const said = `${device}, round ${round}: ${text}, ${((last - first) * 1000).toFixed(0)} ms`;
      const y = row.get(device) + offset;
      trace.x.push(Math.max(first, start), last, null);
      trace.y.push(y, y, null);
      trace.text.push(said, said, "");
    }
    return trace;
  });
  const marks = [...feed.values()].filter((entry) => entry.kind in MARKED && entry.t_s >= start && row.has(entry.device));
  traces.push({
    x: marks.map((entry) => entry.t_s), y: marks.map((entry) => row.get(entry.device)), mode: "markers",
    text: marks.map((entry) => `${entry.t_s.toFixed(1)} s: ${entry.text}`), hoverinfo: "text",
    marker: { size: 13, line: { width: 1.5, color: colour("--panel") },
      symbol: marks.map((entry) => (["join", "return"].includes(entry.kind) ? "star" : "x")),
      color: marks.map((entry) => colour(["join", "return"].includes(entry.kind) ? "--green" : "--red")) },
  });
  draw("timeline", traces, layout(60 + 28 * devices.length, {
    xaxis: { title: { text: "seconds since the start of the run" }, range: [start, Math.max(end, start + 1)] },
    yaxis: { tickvals: devices.map((device) => row.get(device.id)), ticktext: devices.map((device) => device.id),
      range: [-0.7, devices.length - 0.3], showgrid: false } }),
    `Timeline of ${devices.length} devices from ${duration(start)} to ${duration(end)}`);
}

// -- accuracy -----------------------------------------------------------------------------------------
function drawMatrix({ accuracy, devices }) {
  if (!accuracy.length) return;
  const states = new Map(devices.map((device) => [device.id, device]));
  const shards = [...new Set(accuracy.flatMap((row) => Object.keys(row.by_shard)))];
  const rows = [...accuracy].reverse();
  const label = (row) => {
    const device = states.get(row.device);
    return `${row.device}${device && !device.alive ? ` (${device.state})` : ""}, round ${row.round}`;
  };
  const values = rows.map((row) => shards.map((shard) => row.by_shard[shard] ?? null));
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  draw("matrix", [{
    type: "heatmap", x: shards, y: rows.map(label), z: values, zmin: 0, zmax: 1, showscale: false, xgap: 2, ygap: 2,
    colorscale: dark ? [[0, "#22303c"], [1, "#1f78b4"]] : [[0, "#e8f0f7"], [1, "#0063a3"]],
    text: values.map((row) => row.map((share) => (share === null ? "" : String(Math.round(100 * share))))),
    texttemplate: "%{text}", hovertext: values.map((row, at) => row.map((share, column) =>
      `${label(rows[at])}: ${percent(share)} of the facts of ${shards[column]}`)), hoverinfo: "text",
  }], layout(Math.max(180, 70 + 30 * rows.length), {
    xaxis: { side: "top", title: { text: "facts of (per cent answered)" }, type: "category", showgrid: false },
    yaxis: { type: "category", showgrid: false } }),
    rows.map((row) => `${label(row)}: ${shards.map((s) => `${s} ${percent(row.by_shard[s])}`).join(", ")}`).join("; "));
}

function drawCurves({ evaluations, feed }) {
  const sums = new Map(); // shard -> round -> [sum, count]
  for (const [, round, tag, shares] of evaluations) {
    if (tag !== "round" && tag !== "end") continue;
    for (const [shard, share] of Object.entries(shares)) {
      if (!sums.has(shard)) sums.set(shard, new Map());
      const [sum, count] = sums.get(shard).get(round) ?? [0, 0];
      sums.get(shard).set(round, [sum + share, count + 1]);
    }
  }
  const traces = [...sums.entries()].map(([shard, rounds], at) => {
    const points = [...rounds.entries()].sort((a, b) => a[0] - b[0]);
    return {
      x: points.map(([round]) => round), y: points.map(([, [sum, count]]) => sum / count), name: shard,
      mode: "lines+markers", marker: { size: 5 },
      line: { color: colour(HUES[at % HUES.length]), dash: DASHES[Math.floor(at / HUES.length) % 4], width: 2 },
      hovertemplate: `facts of ${shard}: %{y:.0%} after round %{x}<extra></extra>`,
    };
  });
  const marks = [...feed.values()].filter((entry) => entry.kind in MARKED);
  const labels = endLabels(traces);
  draw("curves", traces, layout(isNarrow() ? 280 : 340, {
    margin: { l: 10, r: 40, t: 22, b: 10 },
    xaxis: { title: { text: "round" }, rangemode: "tozero" },
    yaxis: { range: [-0.03, 1.05], tickformat: ".0%" },
    shapes: marks.map((entry) => ({ type: "line", x0: entry.round, x1: entry.round, y0: 0, y1: 1, yref: "paper",
      line: { width: 1, dash: "dot", color: colour("--grey") } })),
    annotations: [...labels, ...marks.map((entry) => ({ x: entry.round, y: 1, yref: "paper", yanchor: "bottom", showarrow: false,
      text: `${entry.device} ${MARKED[entry.kind]}`, font: { size: 11, color: colour("--faint") } }))] }),
    `Mean accuracy on the facts of ${[...sums.keys()].join(", ") || "nobody yet"} over rounds`);
}

// A line's name at its end. Names that would overlap are moved apart, up and then down from the top.
function endLabels(traces) {
  const apart = 0.055;
  const labels = [...traces].sort((a, b) => a.y.at(-1) - b.y.at(-1)).map((trace) => ({
    x: trace.x.at(-1), y: trace.y.at(-1), text: trace.name, xanchor: "left", xshift: 8, showarrow: false,
    font: { color: trace.line.color } }));
  let limit = -Infinity;
  for (const label of labels) {
    label.y = Math.max(label.y, limit);
    limit = label.y + apart;
  }
  limit = 1.02;
  for (const label of labels.reverse()) {
    label.y = Math.min(label.y, limit);
    limit = label.y - apart;
  }
  return labels;
}

// -- measurements -------------------------------------------------------------------------------------
function drawResiduals({ decisions }) {
  const groups = [...new Set(decisions.flatMap((decision) => Object.keys(decision.residuals)))];
  const names = [["local", "--blue", "circle"], ["consensus", "--violet", "square"], ["heterogeneity", "--red", "diamond"]];
  const traces = groups.flatMap((group, column) => names.map(([name, hue, symbol]) => ({
    x: decisions.map((decision) => decision.epoch), y: decisions.map((decision) => decision.residuals[group]?.[name]),
    name, showlegend: column === 0, mode: "lines+markers", xaxis: `x${column ? column + 1 : ""}`, yaxis: `y${column ? column + 1 : ""}`,
    line: { color: colour(hue), width: 2 }, marker: { symbol, size: 8 },
    hovertemplate: `${group}, ${name} residual: %{y:.3g} at round %{x}<extra></extra>`,
  })));
  const { xaxis, yaxis, ...made } = layout(isNarrow() ? 170 * groups.length + 50 : 280, { showlegend: true,
    legend: { orientation: "h", y: 1, yanchor: "bottom", bgcolor: "rgba(0,0,0,0)" },
    margin: { l: 10, r: 10, t: 40, b: 10 } });
  groups.forEach((group, at) => {
    const [first, last] = [at / groups.length, (at + 1) / groups.length];
    const n = at === 0 ? "" : at + 1;
    made[`xaxis${n}`] = { ...xaxis, anchor: `y${n}`, title: { text: `round, group ${group}` },
      domain: isNarrow() ? [0, 1] : [first + (at ? 0.04 : 0), last - 0.01] };
    made[`yaxis${n}`] = { ...yaxis, anchor: `x${n}`, rangemode: "tozero",
      domain: isNarrow() ? [1 - last + 0.09, 1 - first] : [0, 1] };
  });
  draw("residuals", traces, made, `Residuals of the groups ${groups.join(", ")} at each decision`);
}
