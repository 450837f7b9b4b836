"use strict";
// Charts with a cursor, sliders over training steps, attention. Everything works with the keyboard.

function make(name, attributes = {}, ...children) {
  const isDrawn = ["svg", "path", "line", "text", "circle", "g"].includes(name);
  const node = isDrawn ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

const format = (value) => Math.abs(value) >= 10000 ? value.toLocaleString("en", {maximumFractionDigits: 0})
  : String(Number(value.toPrecision(4)));

function findTicks(low, high) {
  const raw = (high - low) / 4 || 1, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= raw);
  const ticks = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high + step / 1e6; tick += step) ticks.push(tick);
  return ticks;
}

function drawChart(figure) {
  const {title, series} = JSON.parse(figure.dataset.chart);
  const [width, height, left, right, top, bottom] = [400, 220, 48, 18, 8, 24];
  const svg = make("svg", {viewBox: `0 0 ${width} ${height}`, role: "img", tabindex: 0,
    "aria-label": `${title} of ${series.map((each) => each.name).join(", ")} over the training steps; arrow keys read values`});
  const readout = make("div", {class: "readout", "aria-live": "polite"});
  figure.querySelector(".plot").replaceChildren(svg, readout);
  let at = null;
  function draw() {
    const hidden = new Set([...document.querySelectorAll(".legend input:not(:checked)")].map((each) => each.value));
    const shown = series.filter((each) => !hidden.has(each.name) && each.y.length);
    svg.replaceChildren();
    readout.textContent = shown.length ? "" : "no run is chosen";
    if (!shown.length) return;
    const steps = [...new Set(shown.flatMap((each) => each.x))].sort((a, b) => a - b);
    const values = shown.flatMap((each) => each.y);
    let [low, high] = [Math.min(...values), Math.max(...values)];
    if (low === high) [low, high] = [low - 1, high + 1];
    const first = Math.min(0, steps[0]), last = steps.at(-1) > first ? steps.at(-1) : first + 1;
    const px = (step) => left + (step - first) / (last - first) * (width - left - right);
    const py = (value) => height - bottom - (value - low) / (high - low) * (height - top - bottom);
    for (const tick of findTicks(low, high)) svg.append(
      make("line", {x1: left, x2: width - right, y1: py(tick), y2: py(tick), stroke: "var(--line)"}),
      make("text", {x: left - 6, y: py(tick) + 4, "text-anchor": "end"}, format(tick)));
    for (const tick of findTicks(first, last)) svg.append(
      make("text", {x: px(tick), y: height - 6, "text-anchor": "middle"}, format(tick)));
    for (const each of shown) {
      const path = each.x.map((step, index) => `${index ? "L" : "M"}${px(step).toFixed(1)} ${py(each.y[index]).toFixed(1)}`).join("");
      svg.append(make("path", {d: path, fill: "none", stroke: `var(--s${each.color})`, "stroke-width": 1.6,
        "stroke-dasharray": each.dash}));
      if (each.x.length < 12) svg.append(...each.x.map((step, index) =>
        make("circle", {cx: px(step), cy: py(each.y[index]), r: 2.4, fill: `var(--s${each.color})`})));
    }
    if (at !== null) {
      const step = steps.reduce((best, each) => Math.abs(each - at) < Math.abs(best - at) ? each : best);
      at = step;
      svg.append(make("line", {x1: px(step), x2: px(step), y1: top, y2: height - bottom, stroke: "var(--soft)"}));
      readout.textContent = `step ${format(step)}: ` + shown.map((each) => {
        const index = each.x.reduce((best, x, place) => Math.abs(x - step) < Math.abs(each.x[best] - step) ? place : best, 0);
        svg.append(make("circle", {cx: px(each.x[index]), cy: py(each.y[index]), r: 3.5, fill: `var(--s${each.color})`}));
        return `${each.name} ${format(each.y[index])}`;
      }).join(", ");
    }
    svg.steps = steps;
    svg.find = (event) => {
      const box = svg.getBoundingClientRect();
      return first + ((event.clientX - box.left) / box.width * width - left) / (width - left - right) * (last - first);
    };
  }
  svg.addEventListener("pointermove", (event) => { if (svg.find) { at = svg.find(event); draw(); } });
  svg.addEventListener("pointerleave", () => { at = null; draw(); });
  svg.addEventListener("keydown", (event) => {
    const move = {ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity}[event.key];
    if (!move || !svg.steps) return;
    event.preventDefault();
    const place = at === null ? 0 : svg.steps.indexOf(at) + move;
    at = svg.steps[Math.max(0, Math.min(svg.steps.length - 1, place))];
    draw();
  });
  document.addEventListener("legend", draw);
  draw();
}

function startStepper(stepper) {
  const frames = [...stepper.querySelectorAll(".frame")], range = stepper.querySelector("input");
  const output = stepper.querySelector("output");
  function show() {
    frames.forEach((frame, index) => { frame.hidden = index !== Number(range.value); });
    output.textContent = frames[range.value].dataset.title;
    range.setAttribute("aria-valuetext", output.textContent);
  }
  range.addEventListener("input", show);
  show();
}

function startAttention(figure) {
  const {tokens, layers, heads, weights} = JSON.parse(figure.dataset.attention);
  const bytes = Uint8Array.from(atob(weights), (character) => character.charCodeAt(0));
  const size = tokens.length, area = size * size;
  const range = make("input", {type: "range", min: 0, max: size - 1, value: size - 1, "aria-label": "the token that looks back"});
  const line = make("p", {class: "tokens"}), buttons = make("div", {class: "heads", style: `grid-template-columns: repeat(${heads}, auto)`}), say = make("p", {class: "soft", "aria-live": "polite"});
  let chosen = 0;
  const spans = tokens.map((token, index) => {
    const span = make("span", {}, token === "\n" ? "\u23ce" : token);
    span.addEventListener("pointerenter", () => { range.value = index; show(); });
    span.addEventListener("click", () => { range.value = index; show(); });
    return span;
  });
  line.append(...spans);
  for (let index = 0; index < layers * heads; index++) {
    const name = `layer ${Math.floor(index / heads) + 1}, head ${index % heads + 1}`;
    const canvas = make("canvas", {width: size, height: size, "aria-hidden": "true"});
    const context = canvas.getContext("2d"), picture = context.createImageData(size, size);
    for (let place = 0; place < area; place++) {
      const level = Math.sqrt(bytes[index * area + place] / 255);
      picture.data.set([20 + 235 * level, 24 + 180 * level, 60 + 60 * level, 255], 4 * place);
    }
    context.putImageData(picture, 0, 0);
    const button = make("button", {type: "button", "aria-label": name, title: name}, canvas);
    button.addEventListener("click", () => { chosen = index; show(); });
    buttons.append(button);
  }
  function show() {
    const row = Number(range.value), start = chosen * area + row * size;
    spans.forEach((span, index) => {
      span.className = index === row ? "now" : "";
      span.style.background = index <= row ? `rgb(230 140 30 / ${Math.sqrt(bytes[start + index] / 255).toFixed(2)})` : "";
      span.style.opacity = index <= row ? 1 : .45;
    });
    [...buttons.children].forEach((button, index) => button.setAttribute("aria-pressed", index === chosen));
    const most = [...spans.keys()].slice(0, row + 1).reduce((best, index) => bytes[start + index] > bytes[start + best] ? index : best, 0);
    say.textContent = `${buttons.children[chosen].title}: token ${row + 1} (${JSON.stringify(tokens[row])}) looks most at token `
      + `${most + 1} (${JSON.stringify(tokens[most])}), with ${Math.round(bytes[start + most] / 2.55)} %`;
    range.setAttribute("aria-valuetext", `token ${row + 1}`);
  }
  range.addEventListener("input", show);
  figure.querySelector(".plot").replaceChildren(line, range, say, buttons);
  show();
}

function enhance(root) {
  root.querySelectorAll("[data-chart]").forEach(drawChart);
  root.querySelectorAll(".stepper").forEach(startStepper);
  root.querySelectorAll("[data-attention]").forEach(startAttention);
}

document.addEventListener("change", (event) => {
  if (event.target.closest(".legend")) document.dispatchEvent(new Event("legend"));
});
enhance(document);
