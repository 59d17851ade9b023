// Interactive figures of the book. Each is a <figure data-figure="NAME"> with its data as JSON, and
// a function below that draws it.

const COLOURS = { blue: "#0072b2", red: "#c24e00", green: "#007a5a", purple: "#a0508a" };

// A text of a figure in the language of the site; `docs/locales/` has the translations.
function translate(text) {
  return window.BOOK_TEXTS?.[text] ?? text;
}

// A number with so many decimals, as the language of the site writes it.
function decimal(value, digits) {
  const options = { minimumFractionDigits: digits, maximumFractionDigits: digits, useGrouping: false };
  return value.toLocaleString(document.documentElement.lang, options);
}

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function svg(name, attributes = {}, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

// A labelled slider; calls `changed` with its value now and whenever it moves.
function slider(parent, label, { min, max, step = 1, value }, changed, show = String) {
  const input = element("input", { type: "range", min, max, step });
  input.value = value;
  const output = element("output");
  parent.append(element("label", {}, label, input, output));
  const update = () => {
    output.textContent = show(Number(input.value));
    changed(Number(input.value));
  };
  input.addEventListener("input", update);
  input.set = (next) => {
    input.value = next;
    update();
  };
  update();
  return input;
}

function choice(parent, label, options, changed) {
  const select = element("select", { class: "form-select-sm" });
  options.forEach((option, index) => select.append(element("option", { value: index }, option)));
  parent.append(element("label", {}, label, select));
  select.addEventListener("change", () => changed(Number(select.value)));
}

function controls(figure) {
  const made = element("div", { class: "controls" });
  figure.append(made);
  return made;
}

// A path through values, of which the x axis is the index, in a plot of width × height.
function path(values, width, height, low, high) {
  const x = (index) => (index / (values.length - 1)) * width;
  const y = (value) => height - ((value - low) / (high - low)) * height;
  return values.map((v, i) => `${i ? "L" : "M"}${x(i).toFixed(1)} ${y(v).toFixed(1)}`).join("");
}

const FIGURES = {
  activations(figure, { z, functions }) {
    const width = 250;
    const height = 150;
    const panels = element("div", { class: "panels" });
    const points = [];
    const colours = Object.values(COLOURS);
    Object.entries(functions).forEach(([name, { formula, y, slope }], index) => {
      const low = name === "tanh" ? -1.1 : -0.2;
      const high = name === "relu" ? 6 : 1.2;
      const plot = svg("svg", { viewBox: `0 -4 ${width} ${height + 44}`, width, role: "img" });
      plot.setAttribute("aria-label", `${name}: ${formula}, ${translate("with its slope")}`);
      const line = { fill: "none", stroke: colours[index], "stroke-width": 2 };
      const zero = height - ((0 - low) / (high - low)) * height;
      plot.append(svg("line", { x1: 0, x2: width, y1: zero, y2: zero, stroke: "#888" }));
      plot.append(svg("path", { d: path(y, width, height, low, high), ...line }));
      const dashed = { ...line, "stroke-dasharray": "4 3", "stroke-width": 1.5 };
      plot.append(svg("path", { d: path(slope, width, height, low, high), ...dashed }));
      const dot = svg("circle", { r: 5, fill: colours[index] });
      const text = svg("text", { x: 0, y: height + 34 });
      plot.append(dot, text, svg("text", { x: 0, y: height + 16 }, `${name}  ${formula}`));
      panels.append(plot);
      points.push((at) => {
        dot.setAttribute("cx", (at / (z.length - 1)) * width);
        dot.setAttribute("cy", height - ((y[at] - low) / (high - low)) * height);
        const value = decimal(slope[at], 3);
        text.textContent = `y = ${decimal(y[at], 3)}   ${translate("slope")} = ${value}`;
      });
    });
    figure.append(panels);
    const range = { min: 0, max: z.length - 1, value: 70 };
    const show = (at) => decimal(z[at], 1);
    slider(controls(figure), "z", range, (at) => points.forEach((f) => f(at)), show);
  },

  convolution(figure, { image, kernels, biases }) {
    const size = image.length;
    const scale = 5;
    const bar = controls(figure);
    const panels = element("div", { class: "panels" });
    const canvases = [
      translate("The image and the stamp"), translate("The map that the stamp makes"),
    ].map((label) => {
      const canvas = element("canvas", { width: size * scale, height: size * scale, role: "img" });
      canvas.setAttribute("aria-label", label);
      panels.append(element("div", {}, canvas, element("small", {}, label)));
      return canvas;
    });
    const sum = element("pre", { "aria-live": "polite" });
    panels.append(sum);
    figure.append(panels);
    const state = { row: 20, column: 24, stamp: 0 };
    const pixel = (row, column) => image[row]?.[column] ?? 0;
    const product = (row, column, kernel) =>
      kernel.flatMap((line, i) => line.map((w, j) => w * pixel(row + i - 1, column + j - 1)));
    const map = (stamp) =>
      image.map((line, row) =>
        line.map((_, column) => {
          const terms = product(row, column, kernels[stamp]);
          return Math.max(0, terms.reduce((a, b) => a + b, biases[stamp]));
        }),
      );
    const paint = (canvas, values) => {
      const context = canvas.getContext("2d");
      const flat = values.flat();
      const low = Math.min(...flat);
      const high = Math.max(...flat) || 1;
      values.forEach((line, row) =>
        line.forEach((value, column) => {
          const grey = Math.round((255 * (value - low)) / (high - low || 1));
          context.fillStyle = `rgb(${grey},${grey},${grey})`;
          context.fillRect(column * scale, row * scale, scale, scale);
        }),
      );
      context.strokeStyle = "#ff8c1a";
      context.lineWidth = 2;
      return context;
    };
    const draw = () => {
      const { row, column, stamp } = state;
      const values = map(stamp);
      const corner = (offset) => offset * scale;
      paint(canvases[0], image).strokeRect(
        corner(column - 1), corner(row - 1), 3 * scale, 3 * scale,
      );
      paint(canvases[1], values).strokeRect(corner(column), corner(row), scale, scale);
      const number = (value) => decimal(value, 2).padStart(6);
      const lines = kernels[stamp].map((line, i) => {
        const terms = line.map((w, j) => `${number(pixel(row + i - 1, column + j - 1))}·${number(w)}`);
        return terms.join(" ");
      });
      const total = product(row, column, kernels[stamp]).reduce((a, b) => a + b, biases[stamp]);
      sum.textContent =
        `${translate("pixel · weight")}\n${lines.join("\n")}` +
        `\n${translate("bias").padEnd(6)}${number(biases[stamp])}` +
        `\n${translate("sum").padEnd(6)}${number(total)}` +
        `\n${"ReLU".padEnd(6)}${number(Math.max(0, total))}`;
    };
    const set = (name) => (value) => {
      state[name] = value;
      if (ready) draw();
    };
    let ready = false;
    slider(bar, translate("stamp"), { min: 0, max: kernels.length - 1, value: 0 }, set("stamp"), (v) => `${v + 1}`);
    const row = slider(bar, translate("row"), { min: 0, max: size - 1, value: 20 }, set("row"));
    const column = slider(bar, translate("column"), { min: 0, max: size - 1, value: 24 }, set("column"));
    canvases[0].addEventListener("pointermove", (event) => {
      const box = canvases[0].getBoundingClientRect();
      const at = (offset, length) => Math.min(size - 1, Math.floor((offset / length) * size));
      row.set(at(event.clientY - box.top, box.height));
      column.set(at(event.clientX - box.left, box.width));
    });
    ready = true;
    draw();
  },

  gates(figure, { tokens, units, input, forget, output, cell }) {
    const bar = controls(figure);
    const step = 40;
    const width = step * (tokens.length - 1);
    const height = 120;
    const left = 70;
    const plot = svg("svg", {
      viewBox: `0 0 ${width + 2 * left} ${2 * height + 90}`, width: width + 2 * left, role: "img",
    });
    const label = translate("Gates of one unit, and its cell state, at each token");
    plot.setAttribute("aria-label", label);
    plot.style.minWidth = "460px";
    const gate = {
      [translate("input gate")]: COLOURS.blue,
      [translate("forget gate")]: COLOURS.red,
      [translate("output gate")]: COLOURS.green,
    };
    const line = (colour, y) =>
      svg("path", { fill: "none", stroke: colour, "stroke-width": 2, transform: `translate(${left} ${y})` });
    const lines = Object.values(gate).map((colour) => line(colour, 30));
    const state = line(COLOURS.purple, height + 60);
    const zero = svg("line", { x1: left, x2: left + width, stroke: "#888" });
    plot.append(...lines, zero, state);
    Object.entries(gate).forEach(([name, colour], index) => {
      const text = svg("text", { x: left + 130 * index, y: 14 }, `— ${name}`);
      text.style.fill = colour;
      plot.append(text);
    });
    plot.append(svg("text", { x: left, y: height + 50 }, translate("cell state")));
    for (const [value, y] of [[translate("open 1"), 34], [translate("shut 0"), height + 34]]) {
      plot.append(svg("text", { x: 4, y }, value));
    }
    tokens.forEach((token, index) => {
      const x = left + step * index;
      const y = 2 * height + 80;
      plot.append(svg("text", { x, y, "text-anchor": "middle" }, token.trim()));
    });
    figure.append(plot);
    const draw = (at) => {
      [input, forget, output].forEach((values, index) => {
        lines[index].setAttribute("d", path(values[at], width, height, 0, 1));
      });
      const high = Math.max(...cell[at].map(Math.abs));
      state.setAttribute("d", path(cell[at], width, height, -high, high));
      zero.setAttribute("y1", height + 60 + height / 2);
      zero.setAttribute("y2", height + 60 + height / 2);
    };
    slider(bar, translate("unit"), { min: 0, max: units.length - 1, value: 0 }, draw, (v) => String(units[v]));
  },

  attention(figure, { layers }) {
    const bar = controls(figure);
    const body = element("div");
    figure.append(body);
    const state = { layer: 0, head: 0, query: 0 };
    const draw = () => {
      const { queries, keys, heads } = layers[state.layer];
      state.query = Math.min(state.query, queries.length - 1);
      const weights = heads[state.head][state.query];
      const from = element("div", { class: "tokens" });
      queries.forEach((token, index) => {
        const pressed = index === state.query;
        const button = element("button", { type: "button", "aria-pressed": pressed }, token);
        button.addEventListener("click", () => {
          state.query = index;
          draw();
        });
        button.addEventListener("pointerenter", () => {
          if (state.query !== index) {
            state.query = index;
            draw();
          }
        });
        from.append(button);
      });
      const to = element("div", { class: "tokens" });
      keys.forEach((token, index) => {
        const share = `${Math.round(100 * weights[index])} %`;
        const shown = element("button", { type: "button", disabled: "", title: share }, token);
        const light = 97 - 60 * weights[index];
        shown.style.background = `hsl(205 80% ${light}%)`;
        shown.style.color = light < 60 ? "white" : "black";
        shown.append(element("br"), element("small", {}, share));
        to.append(shown);
      });
      body.replaceChildren(translate("This token"), from, translate("attends to"), to);
    };
    choice(bar, translate("layer"), layers.map((layer) => layer.layer), (value) => {
      state.layer = value;
      draw();
    });
    const heads = layers[0].heads.map((_, index) => `${translate("head")} ${index + 1}`);
    choice(bar, translate("head"), heads, (value) => {
      state.head = value;
      draw();
    });
    draw();
  },

  temperature(figure, { prompt, tokens, logits }) {
    figure.append(element("p", {}, translate("“{prompt} …”").replace("{prompt}", prompt)));
    const bar = controls(figure);
    const width = 420;
    const plot = svg("svg", { viewBox: `0 0 ${width} ${24 * (tokens.length + 1)}`, width, role: "img" });
    plot.setAttribute("aria-label", translate("Probabilities of the next token"));
    figure.append(plot);
    const draw = (temperature) => {
      const exponentials = logits.map((logit) => Math.exp(logit / temperature));
      const total = exponentials.reduce((a, b) => a + b, 0);
      const shares = exponentials.slice(0, tokens.length).map((value) => value / total);
      const rest = 1 - shares.reduce((a, b) => a + b, 0);
      plot.replaceChildren();
      [...shares, rest].forEach((share, index) => {
        const y = 24 * index;
        const token = tokens[index] ?? translate("all others");
        const length = 220 * share;
        plot.append(svg("text", { x: 90, y: y + 16, "text-anchor": "end" }, token.replace("\n", "↵")));
        plot.append(svg("rect", { x: 100, y: y + 3, width: length, height: 18, fill: COLOURS.blue }));
        plot.append(svg("text", { x: 106 + length, y: y + 16 }, `${decimal(100 * share, 1)} %`));
      });
    };
    const range = { min: 0.1, max: 3, step: 0.1, value: 1 };
    slider(bar, translate("temperature"), range, draw, (value) => decimal(value, 1));
  },

  denoising(figure, { frames }) {
    const alt = translate("Ten digits, and below what the network takes them for");
    const image = element("img", { alt });
    image.style.width = "560px";
    const bar = controls(figure);
    figure.append(image);
    const source = (index) => `data:image/png;base64,${frames[index]}`;
    const draw = (index) => (image.src = source(index));
    const last = frames.length - 1;
    const show = (index) => `${index} ${translate("of")} ${last}`;
    slider(bar, translate("from noise to digits"), { min: 0, max: last, value: last }, draw, show);
  },
};

document.addEventListener("DOMContentLoaded", () => {
  // The theme's name of the search button lacks the shortcut that it shows.
  document.querySelector(".search-button-field")?.removeAttribute("aria-label");
  for (const figure of document.querySelectorAll("figure.interactive")) {
    const data = JSON.parse(figure.querySelector("script").textContent);
    FIGURES[figure.dataset.figure](figure, data);
    figure.append(figure.querySelector(".interactive-caption"));
  }
});
