// The texts and tables of the page. Texts of records are set as text, never as HTML.

const FEED_CLASS = {
  leave: "gone", retire: "gone", crash: "gone", deleted: "gone", confirmed: "gone", failed: "gone",
  suspected: "doubt", stall: "doubt", partition: "doubt", undecided: "doubt", lost_slot: "doubt",
  join: "new", return: "new", came_back: "new", refuted: "new", resume: "new", heal: "new", slot: "new",
  decision: "decision",
};

export const byId = (id) => document.getElementById(id);
export const percent = (share) => (share === undefined || share === null ? "–" : `${Math.round(100 * share)} %`);

export function bytes(count) {
  if (count >= 1e9) return `${(count / 1e9).toFixed(2)} GB`;
  if (count >= 1e6) return `${(count / 1e6).toFixed(1)} MB`;
  return count >= 1e3 ? `${(count / 1e3).toFixed(1)} kB` : `${count} B`;
}

export function duration(seconds) {
  const whole = Math.round(seconds);
  if (whole < 120) return `${whole} s`;
  return whole < 7200 ? `${Math.floor(whole / 60)} min ${whole % 60} s` : `${(whole / 3600).toFixed(1)} h`;
}

export function latency(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  return seconds < 1 ? `${(1000 * seconds).toFixed(1)} ms` : `${seconds.toFixed(2)} s`;
}

function element(tag, text = "", className = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

const arrows = (text) => text.replaceAll(" -> ", " → ");

function replace(parent, children) {
  byId(parent).replaceChildren(...children);
}

export function showHeader({ run, devices }) {
  if (run.waiting) return;
  const live = devices.filter((device) => device.alive);
  const left = run.left_s === null ? "" : ` · about ${duration(run.left_s)} left`;
  byId("name").textContent = run.name;
  document.title = `${run.name}: ${run.rounds_done} of ${run.rounds} rounds`;
  byId("status").textContent = run.ended
    ? `The run has ended after ${duration(run.seconds)}.`
    : `${run.rounds_done} of ${run.rounds} rounds done · ${live.length} devices take part · ${duration(run.seconds)}${left}`;
  byId("rounds").max = run.rounds;
  byId("rounds").value = run.ended ? run.rounds : run.rounds_done;
  const used = run.granted_bytes ? ` (${percent(run.spent_bytes / run.granted_bytes)})` : "";
  const facts = [
    ["clock", run.clock], ["graph", run.topology], ["mixing", run.mixing], ["policy", run.policy],
    ["sent", bytes(run.sent_bytes)],
    ["budget used", `${bytes(run.spent_bytes)} of ${bytes(run.granted_bytes)}${used}`],
  ];
  replace("facts", facts.map(([name, value]) => {
    const pair = element("div");
    pair.append(element("dt", name), element("dd", value));
    return pair;
  }));
}

export function showNotice({ run }, lost) {
  let text = run.lag ? `The evaluator lags: ${run.lag}.` : "";
  if (lost) text = run.ended
    ? "The server has ended with the run. This page shows the last state."
    : "The connection to the server is lost. The page tries again.";
  if (byId("notice").textContent !== text) byId("notice").textContent = text;
  byId("notice").hidden = !text;
}

export function showFeed({ feed }) { // the newest first
  const newest = [...feed.values()].sort((a, b) => b.t_s - a.t_s || b.number - a.number);
  replace("feed", newest.map((entry) => {
    const item = element("li", "", FEED_CLASS[entry.kind] ?? "");
    const text = arrows(entry.text);
    item.append(element("time", `${entry.t_s.toFixed(1)} s, round ${Math.max(0, entry.round)}: `), text);
    item.dataset.kind = entry.kind;
    return item;
  }));
}

export function stateText(device) {
  const joined = device.joined && device.alive ? ", joined" : "";
  if (device.state === "suspected") return `suspected by ${device.suspected_by.join(", ")}${joined}`;
  return `${device.state}${joined}`;
}

export function showDevices({ devices, accuracy }) {
  const live = devices.filter((device) => device.alive).map((device) => device.id);
  const found = new Map(accuracy.map((row) => [row.device, row]));
  replace("devices", devices.map((device) => {
    const row = element("tr", "", device.alive ? "" : "off");
    row.dataset.device = device.id;
    row.dataset.state = device.state;
    const head = element("th", device.id);
    head.scope = "row";
    const known = found.get(device.id);
    const shares = live.map((shard) => known?.by_shard[shard]).filter((share) => share !== undefined);
    const mean = shares.length ? shares.reduce((a, b) => a + b, 0) / shares.length : null;
    const budget = element("td");
    if (device.granted_bytes) {
      const meter = element("meter");
      meter.max = 1;
      meter.value = Math.min(1, device.spent_bytes / device.granted_bytes);
      meter.setAttribute("aria-label", `budget used by ${device.id}`);
      budget.append(meter, document.createTextNode(percent(device.spent_bytes / device.granted_bytes)));
    }
    row.append(
      head, element("td", stateText(device)), element("td", device.round ?? "–", "n"),
      element("td", device.phase || "–"), element("td", device.loss?.toFixed(3) ?? "–", "n"),
      stamped(known?.by_shard[device.id], known), stamped(mean, known),
      element("td", bytes(device.sent_bytes), "n"), budget,
    );
    return row;
  }));
}

function stamped(share, evaluation) {
  const cell = element("td", percent(share), "n");
  if (evaluation) cell.append(element("span", ` round ${evaluation.round}`, "stamp"));
  return cell;
}

export function showLinks({ links }) {
  if (!document.querySelector("details").open) return;
  const heaviest = [...links].sort((a, b) => b[2] - a[2]);
  replace("links", heaviest.map(([source, target, sent, median]) => {
    const row = element("tr");
    row.append(element("td", source), element("td", target), element("td", bytes(sent), "n"),
      element("td", latency(median), "n"));
    return row;
  }));
}

export function showDecisions({ decisions }) {
  byId("measures").hidden = decisions.length === 0;
  if (byId("decisions").childElementCount === decisions.length) return;
  replace("decisions", [...decisions].reverse().map((decision) => {
    const item = element("li");
    item.append(element("b", `reports of round ${decision.epoch}: `), arrows(decision.reason));
    return item;
  }));
}
