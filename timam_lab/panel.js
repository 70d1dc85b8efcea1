// The search panel in the browser. Requests go to Python as messages, answers come back as traits (panel.py).

const HTML = `
  <form role="search">
    <input type="search" aria-label="Sentence" placeholder="a sentence, then Enter">
    <button>Search</button>
    <label>or a picture <input type="file" accept="image/*"></label>
  </form>
  <label>similarity at least <input type="range" min="-1" max="1" step="0.01"> <span></span></label>
  <p role="status"></p>
  <ol></ol>`;

function tile(model, index) {
  const item = document.createElement("li");
  item.innerHTML = '<button type="button"><img><span></span></button>';
  item.firstChild.onclick = () => model.send({ like: index });
  return item;
}

function fill(item, { name, score, source }, rank) {
  const [button, image, text] = [item.firstChild, ...item.firstChild.children];
  button.title = `search for pictures like ${name}`;
  image.src = source;
  image.alt = `${rank}: ${name}`;
  text.textContent = score.toFixed(2);
}

function render({ model, el }) {
  el.classList.add("timam-search");
  el.dataset.lmSuppressShortcuts = "true"; // JupyterLab would take Enter and letters as commands
  el.innerHTML = HTML;
  const [form, status, list] = ["form", "p", "ol"].map((name) => el.querySelector(name));
  const [sentence, picture, slider] = ["search", "file", "range"].map((type) => el.querySelector(`[type=${type}]`));

  function draw() {
    const answers = model.get("answers");
    const shown = answers.filter(({ score }) => score >= model.get("threshold")).length;
    el.setAttribute("aria-busy", model.get("busy"));
    status.textContent = model.get("status") + (shown < answers.length ? ` (${shown} of ${answers.length} shown)` : "");
    slider.value = model.get("threshold");
    el.querySelector("[type=range] + span").textContent = model.get("threshold").toFixed(2);
    while (list.children.length < answers.length) list.append(tile(model, list.children.length));
    [...list.children].forEach((item, i) => {
      item.hidden = i >= shown; // best first
      if (i < answers.length) fill(item, answers[i], i + 1);
    });
  }

  form.onsubmit = (event) => {
    event.preventDefault();
    if (sentence.value.trim()) model.send({ sentence: sentence.value.trim() });
  };
  el.onkeydown = (event) => { // inside a notebook JupyterLab keeps keys from doing what they do elsewhere
    const { key, target } = event;
    event.stopPropagation();
    if (key === "Enter" && target === sentence) form.requestSubmit();
    else if (["Enter", " "].includes(key) && (target.tagName === "BUTTON" || target === picture)) target.click();
    else if (key.startsWith("Arrow") && target === slider) {
      ["ArrowRight", "ArrowUp"].includes(key) ? slider.stepUp() : slider.stepDown();
      slider.oninput();
    } else return;
    event.preventDefault();
  };
  picture.onchange = async () => {
    const [file] = picture.files;
    if (file) model.send({ picture: file.name }, undefined, [await file.arrayBuffer()]);
    sentence.value = "";
    picture.value = ""; // so that the same file, chosen again, is a change
  };
  slider.oninput = () => {
    model.set("threshold", Number(slider.value));
    model.save_changes();
  };
  list.onclick = () => { sentence.value = ""; }; // pictures like one that was found
  sentence.value = model.get("sentence");
  for (const name of ["answers", "busy", "status", "threshold"]) model.on(`change:${name}`, draw);
  draw();
  return () => model.off(null, null, draw);
}

export default { render };
