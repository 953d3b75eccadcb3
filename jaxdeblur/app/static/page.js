"use strict";

const $ = (id) => document.getElementById(id);
const HEADERS = { "X-Requested-With": "jaxdeblur" };
const POLL = 400, PREVIEW_WAIT = 60, KEEP_ALIVE = 60000;

let limits = { megapixels: 0, upload_mb: 0 };
let presets = [];
let photo = null;      // what the server says of the photograph
let run = null;        // the result that is shown
let job = null;        // the computation under way
let kernel = null;     // { id, height, width, values }: what the next last step uses
let erased = new Set();
let region = null;     // [x, y, width, height]
let zoom = 0;
let spot = [0.5, 0.5]; // where the loupe is, as shares of the photograph
let full = { before: null, after: null };

// Talking to the server.

async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: { ...HEADERS, ...options.headers } });
  } catch {
    throw new Error("The page's server does not answer. Is it still running?");
  }
  if (response.ok) return response;
  let message = `The server answered with ${response.status}.`;
  try { message = (await response.json()).error || message; } catch { /* no JSON */ }
  const error = new Error(message[0].toUpperCase() + message.slice(1));
  error.status = response.status;
  throw error;
}

const post = (path, value) => ask(path, { method: "POST", body: JSON.stringify(value) });

function complain(error) {
  $("error").textContent = error ? error.message : "";
  $("error").hidden = !error;
  if (error) $("error").scrollIntoView({ block: "nearest" });
}

async function trying(work) {
  complain(null);
  try { return await work(); } catch (error) { complain(error); return undefined; }
}

// The photograph.

async function begin() {
  const response = await trying(() => ask("/api/session"));
  if (!response) return;
  const state = await response.json();
  limits = state.limits;
  presets = state.presets;
  $("limits").textContent = `JPEG, PNG, TIFF, WebP or BMP, up to ${limits.megapixels} megapixels and ${limits.upload_mb} MB`;
  $("preset").replaceChildren(...presets.map((one) => new Option(one.name, one.name)));
  describePreset();
  if (state.photo) {
    showPhoto(state.photo);
    if (state.photo.runs.length) showRun(state.photo.runs[state.photo.runs.length - 1]);
    if (state.job && ["waiting", "running"].includes(state.job.state)) follow(state.job);
  }
}

async function take(file) {
  if (!file) return;
  if (file.size > limits.upload_mb * 1e6) {
    complain(new Error(`${file.name} has ${Math.round(file.size / 1e6)} MB; the most that is taken is ${limits.upload_mb} MB.`));
    return;
  }
  busy(`Reading ${file.name} …`);
  const name = file.name || `pasted.${(file.type.split("/")[1] || "png")}`;
  await load(() => ask(`/api/photos?name=${encodeURIComponent(name)}`, { method: "POST", body: file }));
}

async function load(request) {
  await stop();
  const response = await trying(request);
  busy("");
  if (response) showPhoto(await response.json());
}

function busy(text) {
  $("limits").textContent = text || `JPEG, PNG, TIFF, WebP or BMP, up to ${limits.megapixels} megapixels and ${limits.upload_mb} MB`;
  $("title").textContent = text || (photo ? photo.name : "Takes camera shake out of a photograph");
}

function showPhoto(found) {
  photo = found;
  run = kernel = null;
  erased = new Set();
  full = { before: null, after: null };
  setRegion(null);
  $("welcome").hidden = true;
  $("studio").hidden = false;
  $("title").textContent = `${photo.name} · ${photo.width} × ${photo.height}`;
  $("frame").style.setProperty("--ratio", photo.width / photo.height);
  $("before").src = `/api/photos/${photo.id}/before_screen.jpg`;
  for (const id of ["strength", "kernel-card", "keep", "facts"]) $(id).hidden = true;
  $("smoothness").value = 0;
  $("amount").value = 100;
  $("saturated").checked = $("known").checked = false;
  showAfter(null);
  advise(photo.notes.map((text) => ({ text })));
  setZoom(0);
  idle();
}

function showAfter(source, label = "after") {
  for (const element of [$("after"), $("bar"), $("split"), ...document.querySelectorAll(".tag")]) element.hidden = !source;
  if (source) $("after").src = source;
  $("after-tag").textContent = label;
}

function showRun(found) {
  run = found;
  const base = `/api/photos/${photo.id}/runs/${run.id}`;
  full.after = null;
  showAfter(`${base}/after_screen.jpg`);
  kernel = { id: run.id, ...run.kernel };
  erased = new Set();
  drawKernel();
  const own = photo.lossy ? "JPEG" : run.suffix.slice(1).toUpperCase();
  $("download").textContent = `Download (${own})`;
  $("download").href = `${base}/image`;
  $("download-png").href = `${base}/png`;
  $("download-png").hidden = own === "PNG";
  $("open-report").href = `${base}/report`;
  $("download-report").href = `${base}/report.html`;
  $("download-all").href = `${base}/all.zip`;
  $("kernel-png").href = `${base}/kernel.png`;
  $("kernel-npy").href = `${base}/kernel.npy`;
  const asked = run.settings;
  if (asked.smoothness) $("smoothness").value = Math.log2(asked.smoothness);
  if (asked.amount !== undefined) $("amount").value = Math.round(100 * asked.amount);
  $("saturated").checked = asked.saturated === true || run.chosen.endsWith("saturated");
  setRegion(asked.region || null);
  showValues();
  for (const id of ["strength", "kernel-card", "keep", "facts"]) $(id).hidden = false;
  const seconds = Object.values(run.seconds).reduce((sum, one) => sum + one, 0);
  const method = run.chosen === "input" ? "left as it was" : `method: ${run.chosen.split(", ").pop()}`;
  $("facts").textContent = `Done in ${seconds.toFixed(0)} s (${method}; kernel of ${run.kernel.width} pixels)`;
  advise(run.advice);
  drawLoupes();
}

function advise(items) {
  $("advice").replaceChildren(...items.map((item) => {
    const box = document.createElement("div");
    box.className = "notice";
    const text = document.createElement("p");
    text.textContent = item.text;
    box.append(text);
    if (item.action) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = item.label;
      button.addEventListener("click", () => act(item));
      box.append(button);
    }
    return box;
  }));
}

function act(item) {
  if (item.action === "saturated") {
    $("saturated").checked = true;
    finish();
  } else if (item.action === "kernel_size") {
    $("kernel-size").value = item.value;
    deblur();
  } else {
    setDrawing(true);
    $("stage").scrollIntoView({ block: "nearest" });
  }
}

// Computing.

const number = (id) => ($(id).value === "" ? null : Number($(id).value));
const smoothness = () => 2 ** Number($("smoothness").value);
const amount = () => Number($("amount").value) / 100;

function settings() {
  return {
    preset: $("preset").value,
    kernel_size: number("kernel-size"),
    num_restarts: number("restarts"),
    minutes: number("minutes"),
    seed: number("seed"),
    region,
    smoothness: smoothness(),
    amount: amount(),
    saturated: $("saturated").checked,
  };
}

async function deblur() {
  const asked = settings();
  if ($("known").checked && kernel) Object.assign(asked, { kernel: kernel.id, erased: [...erased], kernel_size: null, minutes: null });
  await start(asked);
}

// The last step alone: what the sliders, the switch and the brush ask for.
async function finish() {
  if (!run) return;
  await start({ ...settings(), kernel: kernel.id, erased: [...erased], kernel_size: null, minutes: null, last_step_only: true });
}

async function start(asked) {
  const response = await trying(() => post(`/api/photos/${photo.id}/runs`, asked));
  if (response) follow(await response.json());
}

let following = 0;

async function follow(account) {
  const mine = ++following;
  let pictures = 0;
  job = account;
  while (mine === following) {
    if (job.state === "done") {
      const { result } = job;
      showRun(result);
      idle();
      return;
    }
    if (job.state === "failed" || job.state === "cancelled") {
      const { error } = job;
      idle();
      if (error) complain(new Error(error[0].toUpperCase() + error.slice(1)));
      if (run) showAfter(`/api/photos/${photo.id}/runs/${run.id}/after_screen.jpg`);
      else showAfter(null);
      return;
    }
    showProgress();
    if (job.snapshots > pictures) {
      pictures = job.snapshots;
      showAfter(`/api/jobs/${job.id}/snapshot.jpg?${pictures}`, "forming …");
    }
    await new Promise((resolve) => setTimeout(resolve, POLL));
    if (mine !== following) return;
    try {
      job = await (await ask(`/api/jobs/${job.id}`)).json();
    } catch (error) {
      if (error.status) { idle(); complain(error); return; }
      $("phase").textContent = "Waiting for the server …"; // it may come back
    }
  }
}

function showProgress() {
  $("run").hidden = true;
  $("progress").hidden = false;
  $("enough").hidden = true;
  if (job.state === "waiting") {
    $("phase").textContent = job.place > 1 ? `Waiting: number ${job.place} in the queue` : "Waiting: next in the queue";
    $("left").textContent = "";
    $("share").removeAttribute("value");
    return;
  }
  $("phase").textContent = job.phase;
  $("enough").hidden = !job.searching;
  if (job.share === null) $("share").removeAttribute("value");
  else $("share").value = job.share;
  const percent = job.share === null ? "" : `${Math.round(100 * job.share)} %`;
  const left = job.seconds_left > 0.5 ? `, about ${howLong(job.seconds_left)} left in this step` : "";
  $("left").textContent = percent + left;
}

const howLong = (seconds) => (seconds < 90 ? `${Math.ceil(seconds)} s` : `${Math.round(seconds / 60)} minutes`);

function idle() {
  job = null;
  $("run").hidden = false;
  $("run").textContent = run ? "Deblur again" : "Deblur";
  $("progress").hidden = true;
}

async function stop() {
  if (!job) return;
  const identity = job.id;
  following++;
  idle();
  try { await ask(`/api/jobs/${identity}`, { method: "DELETE" }); } catch { /* it has ended by itself */ }
  if (run) showAfter(`/api/photos/${photo.id}/runs/${run.id}/after_screen.jpg`);
  else showAfter(null);
}

// Strength: a preview while a slider moves, the whole photograph when it is let go.

let previewing = false, wanted = false, previewTimer = 0;

function preview() {
  if (!run) return;
  wanted = true;
  clearTimeout(previewTimer);
  previewTimer = setTimeout(nextPreview, PREVIEW_WAIT);
}

async function nextPreview() {
  if (previewing || !wanted) return;
  previewing = true;
  wanted = false;
  const began = performance.now(), shown = run.id;
  try {
    const asked = { smoothness: smoothness(), amount: amount(), kernel: kernel.id, erased: [...erased] };
    const response = await post(`/api/photos/${photo.id}/runs/${run.id}/preview`, asked);
    const image = URL.createObjectURL(await response.blob());
    if (run && run.id === shown) {
      const old = $("after").src;
      showAfter(image, "preview");
      $("after").dataset.latency = Math.round(performance.now() - began);
      if (old.startsWith("blob:")) URL.revokeObjectURL(old);
    }
  } catch (error) {
    complain(error);
  } finally {
    previewing = false;
    if (wanted) nextPreview();
  }
}

function showValues() {
  const factor = smoothness();
  $("smoothness-value").textContent = factor === 1 ? "as estimated" : `× ${factor.toPrecision(2)}`;
  $("amount-value").textContent = `${$("amount").value} %`;
}

// The kernel: shown large, and a brush that erases.

function drawKernel() {
  const canvas = $("kernel"), { width, height, values } = kernel;
  canvas.width = width;
  canvas.height = height;
  canvas.style.aspectRatio = `${width} / ${height}`;
  const context = canvas.getContext("2d"), image = context.createImageData(width, height);
  const peak = values.reduce((most, one) => Math.max(most, one), 0) || 1;
  values.forEach((value, index) => {
    const gone = erased.has(index), level = gone ? 0 : 255 * Math.sqrt(value / peak); // faint specks show, too
    image.data.set(gone && value > 0 ? [70, 20, 24, 255] : [level, level, level, 255], 4 * index);
  });
  context.putImageData(image, 0, 0);
  if (brush) {
    context.strokeStyle = "#ffd54a";
    context.lineWidth = 0.4;
    context.strokeRect(brush[0] - 0.8, brush[1] - 0.8, 2.6, 2.6);
  }
  $("kernel-reset").disabled = erased.size === 0 && !!run && kernel.id === run.id;
}

let painting = false, brush = null;

function erase(x, y) {
  const { width, height } = kernel, radius = Math.max(1, Math.round(Math.max(width, height) / 30));
  for (let row = y - radius; row <= y + radius; row++) {
    for (let column = x - radius; column <= x + radius; column++) {
      if (row >= 0 && column >= 0 && row < height && column < width) erased.add(row * width + column);
    }
  }
  drawKernel();
  preview();
}

function cell(event) {
  const box = $("kernel").getBoundingClientRect();
  return [
    Math.floor((event.clientX - box.left) / box.width * kernel.width),
    Math.floor((event.clientY - box.top) / box.height * kernel.height),
  ];
}

$("kernel").addEventListener("pointerdown", (event) => {
  painting = true;
  brush = null;
  $("kernel").setPointerCapture(event.pointerId);
  erase(...cell(event));
});
$("kernel").addEventListener("pointermove", (event) => { if (painting) erase(...cell(event)); });
$("kernel").addEventListener("pointerup", () => { if (painting) { painting = false; finish(); } });
$("kernel").addEventListener("pointercancel", () => { painting = false; });
$("kernel").addEventListener("keydown", (event) => {
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  brush = brush || [kernel.width >> 1, kernel.height >> 1];
  if (event.key in steps) {
    const [dx, dy] = steps[event.key];
    brush = [Math.min(Math.max(brush[0] + dx, 0), kernel.width - 1), Math.min(Math.max(brush[1] + dy, 0), kernel.height - 1)];
    drawKernel();
  } else if (event.key === " ") {
    erase(...brush);
  } else if (event.key === "Enter") {
    finish();
  } else {
    return;
  }
  event.preventDefault();
});
$("kernel").addEventListener("blur", () => { if (brush) { brush = null; drawKernel(); if (erased.size) finish(); } });
$("kernel-reset").addEventListener("click", () => {
  kernel = { id: run.id, ...run.kernel };
  erased = new Set();
  drawKernel();
  finish();
});
$("kernel-file").addEventListener("change", async (event) => {
  const file = event.target.files[0];
  event.target.value = "";
  if (!file) return;
  const response = await trying(() => ask(`/api/photos/${photo.id}/kernels?name=${encodeURIComponent(file.name)}`, { method: "POST", body: file }));
  if (!response) return;
  const found = await response.json();
  kernel = { id: found.id, ...found.kernel };
  erased = new Set();
  drawKernel();
  finish();
});

// A region: drawn, or typed.

function setRegion(found) {
  region = found;
  const names = ["x", "y", "width", "height"];
  names.forEach((name, index) => { $(`region-${name}`).value = region ? region[index] : ""; });
  $("region-clear").hidden = !region;
  $("rectangle").hidden = !region;
  if (region && photo) place($("rectangle"), region[0] / photo.width, region[1] / photo.height, region[2] / photo.width, region[3] / photo.height);
}

function place(element, x, y, width, height) {
  Object.assign(element.style, { left: `${100 * x}%`, top: `${100 * y}%`, width: `${100 * width}%`, height: `${100 * height}%` });
}

function setDrawing(on) {
  $("drawing").hidden = !on;
  $("region").setAttribute("aria-pressed", on);
  $("hint").hidden = !on;
  $("hint").textContent = "Drag a rectangle over a part with clear edges that the camera's shake alone has blurred. All of the photograph is restored.";
}

let corner = null;
const share = (event) => {
  const box = $("frame").getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height].map((one) => Math.min(Math.max(one, 0), 1));
};

function drawRectangle(event) {
  const [x, y] = share(event);
  const left = Math.round(Math.min(x, corner[0]) * photo.width), top = Math.round(Math.min(y, corner[1]) * photo.height);
  const right = Math.round(Math.max(x, corner[0]) * photo.width), bottom = Math.round(Math.max(y, corner[1]) * photo.height);
  setRegion([left, top, Math.max(right - left, 1), Math.max(bottom - top, 1)]);
}

$("drawing").addEventListener("pointerdown", (event) => { corner = share(event); $("drawing").setPointerCapture(event.pointerId); });
$("drawing").addEventListener("pointermove", (event) => { if (corner) drawRectangle(event); });
$("drawing").addEventListener("pointerup", (event) => {
  if (!corner) return;
  drawRectangle(event);
  corner = null;
  setDrawing(false);
  if (Math.min(region[2], region[3]) < 32) {
    setRegion(null);
    complain(new Error("A region needs 32 pixels or more a side. Draw a larger one."));
  } else {
    complain(null);
    $("run").focus();
  }
});
$("region").addEventListener("click", () => setDrawing($("drawing").hidden));
$("region-clear").addEventListener("click", () => setRegion(null));
for (const name of ["x", "y", "width", "height"]) {
  $(`region-${name}`).addEventListener("change", () => {
    const values = ["x", "y", "width", "height"].map((one) => number(`region-${one}`));
    if (values.every((value) => value !== null)) setRegion(values.map(Math.round));
  });
}

// The loupe: the same spot of both, pixel by pixel.

function setZoom(factor) {
  zoom = factor;
  for (const button of document.querySelectorAll("[data-zoom]")) button.setAttribute("aria-pressed", Number(button.dataset.zoom) === zoom);
  $("loupes").hidden = $("lens").hidden = zoom === 0;
  if (zoom) drawLoupes();
}

function source(which) {
  if (which === "after" && !run) return null;
  if (!full[which]) {
    const image = new Image();
    image.addEventListener("load", drawLoupes);
    image.src = which === "before" ? `/api/photos/${photo.id}/before.jpg` : `/api/photos/${photo.id}/runs/${run.id}/after.jpg`;
    full[which] = image;
  }
  return full[which].complete && full[which].naturalWidth ? full[which] : null;
}

function drawLoupes() {
  if (!zoom || !photo) return;
  const density = window.devicePixelRatio || 1;
  for (const which of ["before", "after"]) {
    const canvas = $(`loupe-${which}`), image = source(which);
    canvas.width = Math.round(canvas.clientWidth * density);
    canvas.height = Math.round(canvas.clientHeight * density);
    const width = canvas.width / zoom, height = canvas.height / zoom;
    const left = spot[0] * photo.width - width / 2, top = spot[1] * photo.height - height / 2;
    if (which === "before") {
      const [x, y] = [Math.max(left, 0), Math.max(top, 0)];
      const [right, bottom] = [Math.min(left + width, photo.width), Math.min(top + height, photo.height)];
      place($("lens"), x / photo.width, y / photo.height, (right - x) / photo.width, (bottom - y) / photo.height);
    }
    if (!image) continue;
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.drawImage(image, left, top, width, height, 0, 0, canvas.width, canvas.height);
  }
}

function look(x, y) {
  spot = [Math.min(Math.max(x, 0), 1), Math.min(Math.max(y, 0), 1)];
  drawLoupes();
}

$("frame").addEventListener("pointermove", (event) => { if (zoom && !corner) look(...share(event)); });
$("frame").addEventListener("pointerdown", (event) => { if (zoom && !corner) look(...share(event)); });
for (const button of document.querySelectorAll("[data-zoom]")) button.addEventListener("click", () => setZoom(Number(button.dataset.zoom)));
for (const which of ["before", "after"]) {
  const canvas = $(`loupe-${which}`);
  let held = null;
  canvas.addEventListener("pointerdown", (event) => { held = [event.clientX, event.clientY]; canvas.setPointerCapture(event.pointerId); });
  canvas.addEventListener("pointermove", (event) => {
    if (!held) return;
    look(spot[0] - (event.clientX - held[0]) / zoom / photo.width, spot[1] - (event.clientY - held[1]) / zoom / photo.height);
    held = [event.clientX, event.clientY];
  });
  canvas.addEventListener("pointerup", () => { held = null; });
  canvas.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (!(event.key in steps)) return;
    const [dx, dy] = steps[event.key];
    look(spot[0] + 24 * dx / photo.width, spot[1] + 24 * dy / photo.height);
    event.preventDefault();
  });
}
window.addEventListener("resize", drawLoupes);

// Controls.

function describePreset() {
  const chosen = presets.find((one) => one.name === $("preset").value);
  $("preset-text").textContent = chosen ? `${chosen.summary}; needs ${chosen.hardware}` : "";
}

$("file").addEventListener("change", (event) => { take(event.target.files[0]); event.target.value = ""; });
$("sample").addEventListener("click", () => { busy("Reading the sample …"); load(() => ask("/api/sample", { method: "POST" })); });
$("run").addEventListener("click", deblur);
$("cancel").addEventListener("click", stop);
$("enough").addEventListener("click", async () => {
  if (!job) return;
  $("enough").hidden = true;
  try { await ask(`/api/jobs/${job.id}/enough`, { method: "POST" }); } catch { /* it has ended by itself */ }
});
$("preset").addEventListener("change", describePreset);
$("split").addEventListener("input", () => $("frame").style.setProperty("--at", `${$("split").value}%`));
for (const id of ["smoothness", "amount"]) {
  $(id).addEventListener("input", () => { showValues(); preview(); });
  $(id).addEventListener("change", finish);
}
$("smoothness").addEventListener("dblclick", () => { $("smoothness").value = 0; showValues(); preview(); finish(); });
$("saturated").addEventListener("change", finish);
$("another").addEventListener("click", () => {
  stop();
  photo = run = null;
  $("studio").hidden = true;
  $("welcome").hidden = false;
  busy("");
});
$("forget").addEventListener("click", async () => {
  following++;
  await trying(() => ask("/api/session", { method: "DELETE" }));
  location.reload();
});

document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
  if (file) take(file);
});
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => { event.preventDefault(); document.body.classList.add("dragging"); });
}
for (const kind of ["dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    if (kind === "drop" || !event.relatedTarget) document.body.classList.remove("dragging");
  });
}
document.addEventListener("drop", (event) => take(event.dataTransfer.files[0]));

const dark = window.matchMedia("(prefers-color-scheme: dark)");
$("theme").addEventListener("click", () => {
  const now = document.documentElement.dataset.theme || (dark.matches ? "dark" : "light");
  document.documentElement.dataset.theme = now === "dark" ? "light" : "dark";
  try { localStorage.setItem("theme", document.documentElement.dataset.theme); } catch { /* private window */ }
});
try {
  const kept = localStorage.getItem("theme");
  if (kept) document.documentElement.dataset.theme = kept;
} catch { /* private window */ }

// A page that is open is not silent.
setInterval(() => { if (!job) ask("/api/session").catch(() => {}); }, KEEP_ALIVE);
begin();
