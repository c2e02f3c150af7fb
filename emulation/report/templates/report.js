// Shows the values of a chart at the pointer, at a touch too. Without this script the browser shows them itself.
const tip = document.createElement("div");
tip.className = "tip";
tip.hidden = true;
document.body.append(tip);

for (const stop of document.querySelectorAll(".stop")) {
  const title = stop.querySelector("title");
  stop.dataset.values = title.textContent;
  title.remove();
}

function show(event) {
  const values = event.target.dataset?.values;
  tip.hidden = !values;
  if (!values) return;
  tip.textContent = values;
  tip.toggleAttribute("data-long", values.split("\n").length > 14);
  const { width, height } = tip.getBoundingClientRect();
  const right = event.clientX + 14 + width < innerWidth ? event.clientX + 14 : event.clientX - 14 - width;
  tip.style.left = `${Math.max(4, right)}px`;
  tip.style.top = `${Math.max(4, Math.min(event.clientY + 14, innerHeight - height - 4))}px`;
}

document.addEventListener("pointermove", show);
document.addEventListener("pointerdown", show);
document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
