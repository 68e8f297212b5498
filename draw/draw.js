// The drawing page: strokes on a canvas, framed by frame.js, read by the network in network.js.
"use strict";

// The one thing that comes from elsewhere. Every version stays at its address.
const LIBRARY = "https://cdn.jsdelivr.net/npm/onnxruntime-web@1.30.0/dist/";
const LAYERS = ["26 × 26", "24 × 24", "22 × 22", "9 × 9", "7 × 7", "5 × 5", "scores, 5 × 5"];
const PEN = 14, MARGIN = 3;  // pixels of 200; nothing is drawn in the margin, as frame.js expects

const paper = document.getElementById("paper");
const pen = paper.getContext("2d", { willReadFrequently: true });
const message = document.getElementById("message");
let session = null, problem = "", busy = false, waiting = false, drawn = false, last = null;

// ---------------------------------------------------------------- drawing ----

function clearPaper() {
  pen.fillStyle = "white";
  pen.fillRect(0, 0, paper.width, paper.height);
  last = null;
  drawn = false;
}

function lineTo(point) {
  const from = last || point;
  pen.save();
  pen.beginPath();
  pen.rect(MARGIN, MARGIN, paper.width - 2 * MARGIN, paper.height - 2 * MARGIN);
  pen.clip();
  pen.beginPath();
  pen.moveTo(...from);
  pen.lineTo(...point);
  pen.lineWidth = PEN;
  pen.lineCap = pen.lineJoin = "round";
  pen.stroke();
  pen.restore();
  last = point;
  drawn = true;
}

function place(event) {
  const box = paper.getBoundingClientRect();
  return [((event.clientX - box.left) / box.width) * paper.width, ((event.clientY - box.top) / box.height) * paper.height];
}

paper.addEventListener("pointerdown", (event) => {
  if (!event.isPrimary || event.button) return;  // a second finger, a resting hand, another button
  paper.setPointerCapture(event.pointerId);
  last = null;
  lineTo(place(event));
  look();
});
paper.addEventListener("pointermove", (event) => {
  if (last === null || !event.isPrimary) return;
  for (const part of event.getCoalescedEvents ? event.getCoalescedEvents() : []) lineTo(place(part));
  lineTo(place(event));
  look();
});
for (const end of ["pointerup", "pointercancel"]) {
  paper.addEventListener(end, (event) => { if (event.isPrimary) last = null; });
}
document.getElementById("clear").addEventListener("click", () => { clearPaper(); look(); });

// The drawing's grey values, 0 (black) to 255 (white), row by row.
function greyValues() {
  const { data } = pen.getImageData(0, 0, paper.width, paper.height);
  return Uint8Array.from({ length: data.length / 4 }, (_, i) => data[4 * i]);
}

// ---------------------------------------------------------------- reading ----

// Read what is drawn now. While the network is at work, further calls become one more, afterwards.
async function look() {
  waiting = true;
  if (busy) return;
  busy = true;
  while (waiting) {
    waiting = false;
    await new Promise((resolve) => setTimeout(resolve));  // the page shows the stroke first
    try {
      await readOnce();
    } catch (error) {
      message.textContent = `The network failed (${error.message}). Load the page again.`;
    }
  }
  busy = false;
}

async function readOnce() {
  let image = null;
  try {
    if (drawn) image = readDrawing(greyValues(), paper.height, paper.width);
    message.textContent = problem || (session ? (drawn ? "" : "Waiting for a digit.") : "The network is loading.");
  } catch (error) {
    message.textContent = `Not read: ${error.message}.`;
  }
  show(document.getElementById("seen"), image || new Uint8Array(784), 28, 0, 255, (part) => Array(3).fill(255 * (1 - part)));
  if (!image || !session) return showResult(null);
  const images = new session.ort.Tensor("float32", Float32Array.from(image), [1, 1, 28, 28]);
  showResult(await session.run({ images }));
}

function showResult(result) {
  const probabilities = result ? Array.from(result.probabilities.data) : Array(10).fill(0);
  const best = probabilities.indexOf(Math.max(...probabilities));
  probabilities.forEach((probability, digit) => {
    const row = document.getElementById("bars").rows[digit];
    row.className = result && digit === best ? "best" : "";
    row.querySelector(".bar").style.width = `${100 * probability}%`;
    row.querySelector(".percent").textContent = result ? `${(100 * probability).toFixed(1)} %` : "";
  });
  if (result) message.textContent = `It reads a ${best}, and is ${Math.round(100 * probabilities[best])} % sure.`;
  LAYERS.forEach((name, number) => showMaps(number, name, result && result[`maps${number + 1}`]));
}

// ---------------------------------------------------------------- showing ----

// Dark blue to yellow, in five steps of the colour map viridis, and straight lines between them.
function viridis(part) {
  const colours = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
  const place = Math.min(part * 4, 3.999), step = Math.floor(place);
  return colours[step].map((value, i) => value + (place - step) * (colours[step + 1][i] - value));
}

function show(canvas, values, side, low, high, colour) {
  const context = canvas.getContext("2d"), picture = context.createImageData(side, side);
  for (let i = 0; i < side * side; i++) {
    const part = high > low ? (values[i] - low) / (high - low) : 0;
    picture.data.set([...colour(part), 255], 4 * i);
  }
  context.putImageData(picture, 0, 0);
}

function showMaps(number, name, maps) {
  const row = document.getElementById("layers").children[number];
  row.hidden = !maps;
  if (!maps) return;
  const [, count, side] = maps.dims, list = row.querySelector(".maps");
  while (list.children.length < count) {
    const figure = list.appendChild(document.createElement("figure")), canvas = document.createElement("canvas");
    canvas.width = canvas.height = side;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `Map ${list.children.length} of ${count}, ${name}`);
    figure.append(canvas, number === LAYERS.length - 1 ? String(list.children.length - 1) : "");
  }
  // The maps of scores are compared with each other, all others each within itself.
  const among = number === LAYERS.length - 1 ? maps.data : null;
  for (let i = 0; i < count; i++) {
    const values = maps.data.subarray(i * side * side, (i + 1) * side * side), range = among || values;
    show(list.children[i].firstChild, values, side, Math.min(...range), Math.max(...range), viridis);
  }
}

for (let digit = 0; digit < 10; digit++) {
  const row = document.getElementById("bars").insertRow();
  row.innerHTML = `<th scope="row">${digit}</th><td><div class="bar"></div></td><td class="percent"></td>`;
}
for (const name of LAYERS) {
  const row = document.getElementById("layers").appendChild(document.createElement("div"));
  row.innerHTML = `<p>${name}</p><div class="maps"></div>`;
  row.hidden = true;
}

// ---------------------------------------------------------------- loading ----

async function load() {
  const late = new Promise((_, fail) => setTimeout(() => fail(new Error("no answer for a minute")), 60000));
  const found = (async () => {
    const ort = await import(`${LIBRARY}ort.wasm.bundle.min.mjs`);
    ort.env.wasm.wasmPaths = LIBRARY;
    ort.env.wasm.numThreads = 1;
    const network = Uint8Array.from(atob(NETWORK), (sign) => sign.charCodeAt(0));
    return Object.assign(await ort.InferenceSession.create(network, { executionProviders: ["wasm"] }), { ort });
  })();
  try {
    session = await Promise.race([found, late]);
  } catch (error) {
    problem = `Digits are framed, but not read: the library onnxruntime-web could not be loaded (${error.message}). ` +
      "Is there a network? Load the page again.";
  }
  look();
}

clearPaper();
load();
