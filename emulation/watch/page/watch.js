// Keeps the state of the run as the server sends it, and shows it. Nothing is stored: a reload asks for all of it.
import { drawAll, drawKeys } from "./charts.js";
import { showDecisions, showDevices, showFeed, showHeader, showLinks, showNotice } from "./draw.js";

const DRAW_MS = 900; // the charts are drawn at most this often
const GROWING = ["spans", "evaluations", "decisions"];

const state = { run: {}, devices: [], links: [], accuracy: [], feed: new Map(), spans: [], evaluations: [],
  decisions: [] };
let lost = false;
let drawnAt = 0;
let timer = null;

function take(update) {
  const news = update.first || update.feed.length > 0;
  if (update.first) {
    state.feed = new Map();
    for (const name of GROWING) state[name] = [];
  }
  for (const name of ["run", "devices", "links", "accuracy"]) state[name] = update[name];
  for (const entry of update.feed) state.feed.set(entry.number, entry);
  for (const name of GROWING) for (const item of update[name]) state[name].push(item);
  showTexts();
  if (news) showFeed(state);
  drawSoon();
}

function showTexts() {
  showHeader(state);
  showDevices(state);
  showLinks(state);
  showDecisions(state);
  showNotice(state, lost);
}

function drawSoon() {
  if (timer !== null || document.hidden) return;
  timer = setTimeout(() => {
    timer = null;
    drawnAt = performance.now();
    drawAll(state);
    document.body.dataset.drawn = String(Number(document.body.dataset.drawn ?? 0) + 1);
  }, Math.max(0, drawnAt + DRAW_MS - performance.now()));
}

function connect() {
  const source = new EventSource("events");
  source.onopen = () => { lost = false; showNotice(state, lost); };
  source.onerror = () => { lost = true; showNotice(state, lost); };
  source.onmessage = (message) => take(JSON.parse(message.data));
}

document.addEventListener("visibilitychange", drawSoon);
document.getElementById("window").addEventListener("change", drawSoon);
document.querySelector("details").addEventListener("toggle", () => showLinks(state));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { drawKeys(); drawSoon(); });
addEventListener("resize", drawSoon);
drawKeys();
connect();
