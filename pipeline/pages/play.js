// Asks for what the controls say; of several questions only the newest answer counts.
const run = document.querySelector("main").dataset.run;
const newest = {};

async function ask(name, query, show) {
  newest[name]?.abort();
  const control = newest[name] = new AbortController();
  const target = document.getElementById(name);
  target.classList.add("busy");
  try {
    const answer = await fetch(`${run}/${name}?${query}`, {signal: control.signal});
    if (answer.ok) await show(target, answer);
    else target.textContent = await answer.text();
  } catch (error) {
    if (error.name === "AbortError") return;
    target.textContent = `no answer: ${error.message}`;
  }
  target.classList.remove("busy");
}

async function showPage(target, answer) {
  target.innerHTML = await answer.text();
}

async function showText(target, answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  target.replaceChildren();
  for (let isFirst = true; ; isFirst = false) {
    const {value, done} = await reader.read();
    if (done) return;
    if (isFirst) target.append(make("mark", {title: "prompt"}, value.trim() ? value : "\u23ce"));
    else target.append(value);
  }
}

document.querySelectorAll("form").forEach((form) => {
  const name = form.dataset.play;
  const send = () => {
    form.querySelectorAll("output").forEach((output) => {
      output.textContent = output.parentElement.querySelector("input").value;
    });
    const values = new FormData(form);
    if (values.get("prompt") === "") values.set("prompt", "\n");
    ask(name, new URLSearchParams(values), name === "text" ? showText : showPage);
  };
  form.addEventListener("submit", (event) => { event.preventDefault(); send(); });
  form.addEventListener(name === "text" ? "change" : "input", send);
  send();
});

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-index]");
  if (!button) return;
  const query = new URLSearchParams(new FormData(document.querySelector("[data-play=gallery]")));
  query.set("index", button.dataset.index);
  button.parentElement.querySelector(".nearest").id = "nearest";
  ask("nearest", query, showPage).then(() => document.getElementById("nearest")?.removeAttribute("id"));
});
