/** The page: a drawing area, the network, and the ten probabilities. */

import { INPUT_SIZE, MNIST_SIZE, normalize, rasterize, resize, softmax } from "./preprocessing.js";

const MODEL = "digits.onnx";
const RUNTIME = "./node_modules/onnxruntime-web/dist/ort.wasm.bundle.min.mjs";
const PEN = 1 / 15; // width of the drawn line, as a fraction of the drawing area
const MIN_DISTANCE = 1 / 250; // between two points of a stroke
const KEY_STEP = 1 / 28; // by which an arrow key moves the pen

const element = (id) => document.getElementById(id);
const canvas = element("drawing");

/** Strokes, each an array of points [x, y] in [0, 1]; the last may be unfinished. */
let strokes = [];
let pointer = null; // id of the pointer that draws
const pen = { x: 0.5, y: 0.5, down: false }; // of the keyboard

// ---- The drawing -------------------------------------------------------------------------------

function addPoint(x, y) {
  const stroke = strokes.at(-1);
  const last = stroke.at(-1);
  if (!last || Math.hypot(x - last[0], y - last[1]) >= MIN_DISTANCE) stroke.push([x, y]);
}

/** Appends the points of a pointer's event; those outside are moved to the edge. */
function addPointsOf(event) {
  const box = canvas.getBoundingClientRect();
  const clip = (value) => Math.max(0, Math.min(1, value));
  const events = event.getCoalescedEvents?.() ?? [];
  for (const { clientX, clientY } of events.length ? events : [event]) {
    addPoint(clip((clientX - box.left) / box.width), clip((clientY - box.top) / box.height));
  }
  paint();
}

function paint() {
  const size = Math.round(canvas.clientWidth * devicePixelRatio);
  if (canvas.width !== size) canvas.width = canvas.height = size;
  const context = canvas.getContext("2d");
  const style = getComputedStyle(canvas);
  context.clearRect(0, 0, size, size);
  context.lineCap = context.lineJoin = "round";
  context.strokeStyle = style.color;
  context.lineWidth = PEN * size;
  for (const stroke of strokes) {
    const points = stroke.map(([x, y]) => [x * size, y * size]);
    context.beginPath();
    context.moveTo(...points[0]);
    for (let i = 1; i < points.length; i++) {
      // A curve from the middle of one segment to the middle of the next
      const [[x0, y0], [x1, y1]] = [points[i - 1], points[i]];
      context.quadraticCurveTo(x0, y0, (x0 + x1) / 2, (y0 + y1) / 2);
    }
    context.lineTo(...points.at(-1)); // a stroke of one point is a dot
    context.stroke();
  }
  if (canvas.matches(":focus-visible")) {
    context.beginPath();
    context.arc(pen.x * size, pen.y * size, (PEN * size) / 2, 0, 2 * Math.PI);
    context.strokeStyle = context.fillStyle = style.accentColor;
    context.lineWidth = 2 * devicePixelRatio;
    context.stroke();
    if (pen.down) context.fill();
  }
  element("hint").hidden = strokes.length > 0;
}

function endStroke() {
  pointer = null;
  pen.down = false;
  update();
}

function undo() {
  strokes.pop();
  endStroke();
}

function clear() {
  strokes = [];
  endStroke();
}

canvas.addEventListener("pointerdown", (event) => {
  if (pointer !== null || pen.down || !event.isPrimary || event.button !== 0) return;
  pointer = event.pointerId;
  canvas.setPointerCapture(pointer);
  strokes.push([]);
  addPointsOf(event);
});
canvas.addEventListener("pointermove", (event) => {
  if (event.pointerId === pointer) addPointsOf(event);
});
for (const type of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(type, (event) => {
    if (event.pointerId === pointer) endStroke();
  });
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

canvas.addEventListener("keydown", (event) => {
  if (pointer !== null || event.ctrlKey || event.altKey || event.metaKey) return;
  const { key } = event;
  if (key in ARROWS) {
    const move = (value, steps) => Math.max(0, Math.min(1, value + steps * KEY_STEP));
    pen.x = move(pen.x, ARROWS[key][0]);
    pen.y = move(pen.y, ARROWS[key][1]);
    if (pen.down) addPoint(pen.x, pen.y);
    paint();
  } else if (key === " " && pen.down) {
    endStroke();
  } else if (key === " ") {
    pen.down = true;
    strokes.push([[pen.x, pen.y]]);
    paint();
  } else if (key === "Backspace") {
    undo();
  } else if (key === "Escape") {
    clear();
  } else {
    return;
  }
  event.preventDefault(); // the page does not scroll
});

canvas.addEventListener("focus", paint);
canvas.addEventListener("blur", () => (pen.down ? endStroke() : paint()));
element("undo").addEventListener("click", undo);
element("clear").addEventListener("click", clear);
new ResizeObserver(paint).observe(canvas);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);

// ---- The network -------------------------------------------------------------------------------

let ort = null;
let session = null;
let outdated = false; // whether the drawing has changed since the probabilities were computed
let running = false;

function setBusy(isBusy) {
  element("result").setAttribute("aria-busy", isBusy);
}

/** Shows a text, with its parts between backticks as code. */
function say(text) {
  const parts = text.split("`").map((part, index) => {
    if (index % 2 === 0) return part;
    const code = document.createElement("code");
    code.textContent = part;
    return code;
  });
  element("message").replaceChildren(...parts);
  element("message").className = "";
}

function fail(text) {
  say(text);
  element("message").className = "error";
  setBusy(false);
}

async function load() {
  say("The network is loading …");
  try {
    ort = await import(RUNTIME);
  } catch {
    return fail("`onnxruntime-web` is missing. Run `npm install` in this folder and reload.");
  }
  ort.env.wasm.numThreads = 1; // threads need HTTP headers that a plain file server does not send
  try {
    const response = await fetch(MODEL);
    if (!response.ok) {
      return fail(
        `The model \`${MODEL}\` is missing (HTTP ${response.status}). Run ` +
          `\`zoo export cnn_48x48-mnist --format onnx --out ${MODEL}\` in this folder and reload.`,
      );
    }
    const bytes = Number(response.headers.get("Content-Length"));
    if (bytes) say(`The network is loading, ${Math.round(bytes / 1e6)} MB …`);
    session = await ort.InferenceSession.create(await response.arrayBuffer());
  } catch (error) {
    return fail(`The model \`${MODEL}\` could not be loaded. ${error.message}`);
  }
  say("A neural network in your browser reads it.");
  update();
}

async function predict(image) {
  const input = normalize(resize(image, MNIST_SIZE, INPUT_SIZE));
  const tensor = new ort.Tensor("float32", input, [1, INPUT_SIZE, INPUT_SIZE, 3]);
  const outputs = await session.run({ [session.inputNames[0]]: tensor });
  return softmax(outputs[session.outputNames[0]].data);
}

/** Computes the probabilities of the drawing as it is, one computation at a time. */
async function update() {
  paint();
  outdated = true;
  if (running || !session) return;
  running = true;
  setBusy(true);
  try {
    while (outdated) {
      outdated = false;
      const image = strokes.length ? rasterize(strokes) : null;
      const probabilities = image && (await predict(image));
      if (!outdated) show(image, probabilities);
    }
  } catch (error) {
    fail(`The network could not be run. ${error.message}`);
  } finally {
    running = false;
    setBusy(false);
  }
}

// ---- The result --------------------------------------------------------------------------------

const bars = Array.from({ length: 10 }, (_, digit) => {
  const row = document.createElement("li");
  row.innerHTML = `<span>${digit}</span><div><div class="bar"></div></div><data></data>`;
  element("bars").append(row);
  return row;
});

function percent(probability) {
  return probability >= 0.9995 ? "> 99.9%" : `${(100 * probability).toFixed(1)}%`;
}

/** Shows an image with its probabilities, or neither where they are null. */
function show(image, probabilities) {
  const best = probabilities ? probabilities.indexOf(Math.max(...probabilities)) : null;
  element("digit").textContent = best ?? "";
  element("certainty").textContent = probabilities ? percent(probabilities[best]) : "";
  bars.forEach((row, digit) => {
    const data = row.querySelector("data");
    const probability = probabilities?.[digit];
    row.classList.toggle("best", digit === best);
    row.classList.toggle("likely", probability >= 0.01);
    row.style.setProperty("--probability", probability ?? 0);
    data.value = probability ?? "";
    data.textContent = probabilities ? percent(probability) : "";
  });
  const input = element("input");
  const context = input.getContext("2d");
  const grey = image ?? new Uint8Array(MNIST_SIZE * MNIST_SIZE);
  const pixels = Uint8ClampedArray.from({ length: 4 * grey.length }, (_, index) =>
    index % 4 === 3 ? 255 : grey[index >> 2],
  );
  context.putImageData(new ImageData(pixels, MNIST_SIZE), 0, 0);
  if (image) element("save").href = input.toDataURL();
  else element("save").removeAttribute("href");
}

show(null, null);
load();
