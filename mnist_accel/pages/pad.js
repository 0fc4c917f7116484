// A sheet to draw a digit on, and what the run's network says of it while it is being drawn.
"use strict";

(() => {
  const SHEET = 560; // pixels a side
  const PEN = 22; // radius: a digit that fills two thirds of the sheet gets strokes as wide as MNIST's

  const found = (id) => document.getElementById(id);
  const { layers: stored, mean, std, shifts, digit, check } = JSON.parse(found("network").textContent);
  const [canvas, seen, answer] = [found("sheet"), found("seen"), found("answer")];
  const rows = [...found("chances").children].map((row) => ({ row, bar: row.querySelector("i"), figure: row.querySelector(".chance") }));
  let layers, drawn, stroke, asked;

  function start() {
    try {
      layers = forward.prepared(stored);
      if (!agreesWithTorch()) throw new Error("not the logits that torch computed");
    } catch (error) {
      found("no-pad").hidden = false;
      return;
    }
    canvas.addEventListener("pointerdown", begin);
    canvas.addEventListener("pointermove", goOn);
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, finish);
    found("clear").addEventListener("click", clear);
    clear();
    found("pad").hidden = false;
  }

  // A pattern that Python showed to the network as well (pattern in pad.py): a browser, or a layer, that computes
  // something else must not speak for the network.
  function agreesWithTorch() {
    const pattern = Uint8Array.from({ length: 28 * 28 }, (_, index) => (index * 37) % 256);
    const tolerance = 1e-3 * (1 + Math.max(...check.map(Math.abs)));
    const logits = logitsOf(pattern);
    return logits.length === check.length && logits.every((logit, index) => Math.abs(logit - check[index]) <= tolerance);
  }

  function logitsOf(image) {
    const seen = Float64Array.from(image, (value) => (value / 255 - mean) / std);
    return forward.logits(layers, seen, shifts, -mean / std);
  }

  // Drawing

  function clear() {
    drawn = ink.sheet(SHEET);
    stroke = null;
    show();
  }

  function begin(event) {
    if (!event.isPrimary || event.button !== 0) return;
    event.preventDefault(); // no selection, no scrolling
    canvas.setPointerCapture(event.pointerId); // a stroke may leave the sheet and come back
    const point = place(event);
    stroke = { last: point, middle: point };
    ink.line(drawn, point, point, PEN);
    showSoon();
  }

  function goOn(event) {
    if (!stroke || !event.isPrimary) return;
    const coalesced = event.getCoalescedEvents ? event.getCoalescedEvents() : [];
    for (const moved of coalesced.length ? coalesced : [event]) draw(place(moved));
    showSoon();
  }

  function finish(event) {
    if (!stroke || !event.isPrimary) return;
    ink.line(drawn, stroke.middle, stroke.last, PEN);
    stroke = null;
    showSoon();
  }

  // Around the corners of a quick stroke: a curve from the middle of the last two points to that of the next two.
  function draw(point) {
    const { last, middle } = stroke;
    const next = { x: (last.x + point.x) / 2, y: (last.y + point.y) / 2 };
    const pieces = Math.ceil(Math.hypot(next.x - middle.x, next.y - middle.y) / PEN) + 1;
    let from = middle;
    for (let piece = 1; piece <= pieces; piece++) {
      const to = onCurve(middle, last, next, piece / pieces);
      ink.line(drawn, from, to, PEN);
      from = to;
    }
    stroke = { last: point, middle: next };
  }

  function onCurve(from, bend, to, t) {
    const mix = (axis) => (1 - t) ** 2 * from[axis] + 2 * t * (1 - t) * bend[axis] + t ** 2 * to[axis];
    return { x: mix("x"), y: mix("y") };
  }

  function place({ clientX, clientY }) {
    const box = canvas.getBoundingClientRect();
    return { x: ((clientX - box.left) * SHEET) / box.width, y: ((clientY - box.top) * SHEET) / box.height };
  }

  // Showing

  function showSoon() {
    asked ??= requestAnimationFrame(show);
  }

  function show() {
    asked = undefined;
    const image = ink.asMnist(drawn);
    paint(canvas, drawn.values, 0, 255);
    paint(seen, image ?? new Uint8Array(28 * 28), 255, 1);
    tell(image && chances(logitsOf(image)));
  }

  // In one shade of grey; how much of it is what the values say.
  function paint(on, values, shade, factor) {
    const pixels = new ImageData(on.width, on.height);
    for (let index = 0; index < values.length; index++) {
      pixels.data.fill(shade, 4 * index, 4 * index + 3);
      pixels.data[4 * index + 3] = factor * values[index];
    }
    on.getContext("2d").putImageData(pixels, 0, 0);
  }

  function chances(logits) {
    if (digit !== null) return [1 / (1 + Math.exp(-logits[0]))];
    const most = Math.max(...logits);
    const powers = logits.map((logit) => Math.exp(logit - most));
    const sum = powers.reduce((a, b) => a + b);
    return powers.map((power) => power / sum);
  }

  function tell(chances) {
    const best = chances ? chances.indexOf(Math.max(...chances)) : -1;
    rows.forEach(({ row, bar, figure }, index) => {
      row.classList.toggle("best", index === best);
      bar.style.width = `${chances ? 100 * chances[index] : 0}%`;
      figure.textContent = chances ? `${(100 * chances[index]).toFixed(1)} %` : "–";
    });
    say(chances ? verdict(chances, best) : "Draw a digit");
  }

  function verdict(chances, best) {
    const number = digit ?? best;
    const article = digit !== null && chances[0] < 0.5 ? "no" : number === 8 ? "an" : "a";
    return `Looks like ${article} ${number}`;
  }

  // It is read out to those who cannot see it: only where it changes.
  function say(text) {
    if (answer.textContent !== text) answer.textContent = text;
  }

  start();
})();
