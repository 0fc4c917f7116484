// From strokes to an image as MNIST has them. What is drawn is kept here, not read from a canvas: browsers that guard
// against fingerprinting put noise into what they give back.
"use strict";

const ink = (() => {
  const SIDE = 28; // of an image
  const BOX = 20; // the longer side of a digit in it
  const CENTRE = 14; // where its centre of mass lies

  // A square sheet of pixels, 0 to 1.
  function sheet(side) {
    return { side, values: new Float32Array(side * side) };
  }

  // A straight line with a round pen, `from` and `to` being {x, y}: soft over one pixel at its edge.
  function line({ side, values }, from, to, radius) {
    const [left, right] = between(from.x, to.x, radius, side);
    const [top, bottom] = between(from.y, to.y, radius, side);
    for (let y = top; y < bottom; y++) {
      for (let x = left; x < right; x++) {
        const value = Math.min(radius + 0.5 - distance(x + 0.5, y + 0.5, from, to), 1);
        if (value > values[y * side + x]) values[y * side + x] = value;
      }
    }
  }

  // The pixels along one axis that the pen can reach.
  function between(a, b, radius, side) {
    return [Math.max(0, Math.floor(Math.min(a, b) - radius - 1)), Math.min(side, Math.ceil(Math.max(a, b) + radius + 1))];
  }

  function distance(x, y, from, to) {
    const [dx, dy] = [to.x - from.x, to.y - from.y];
    const along = ((x - from.x) * dx + (y - from.y) * dy) / (dx * dx + dy * dy || 1);
    const nearest = Math.min(1, Math.max(0, along));
    return Math.hypot(x - from.x - nearest * dx, y - from.y - nearest * dy);
  }

  // 28 × 28 grey levels, 0 to 255, made as MNIST was: the drawing scaled into a box of 20 × 20 with its proportions
  // kept, every pixel the average of the area that it covers, and its centre of mass moved to the middle by whole
  // pixels. null where nothing is drawn.
  function asMnist(drawn) {
    const found = bounds(drawn);
    return found && centred(scaled(drawn, found));
  }

  function bounds({ side, values }) {
    let [left, top, right, bottom] = [side, side, 0, 0];
    for (let y = 0; y < side; y++) {
      for (let x = 0; x < side; x++) {
        if (values[y * side + x] > 0) {
          [left, top] = [Math.min(left, x), Math.min(top, y)];
          [right, bottom] = [Math.max(right, x + 1), Math.max(bottom, y + 1)];
        }
      }
    }
    return right ? { left, top, width: right - left, height: bottom - top } : null;
  }

  function scaled({ side, values }, { left, top, width, height }) {
    const scale = BOX / Math.max(width, height);
    const [rows, columns] = [covered(height, scale), covered(width, scale)];
    const small = { width: columns.length, height: rows.length, values: [] };
    for (const row of rows) {
      for (const column of columns) {
        let sum = 0;
        for (const [y, partOfRow] of row) {
          for (const [x, partOfColumn] of column) sum += partOfRow * partOfColumn * values[(top + y) * side + left + x];
        }
        small.values.push(sum);
      }
    }
    return small;
  }

  // For each pixel of the small image along one axis: the large ones that it covers, and which part of it each is.
  function covered(length, scale) {
    const count = Math.ceil(length * scale - 1e-9);
    return Array.from({ length: count }, (_, index) => {
      const [start, end] = [index / scale, Math.min((index + 1) / scale, length)];
      const parts = [];
      for (let pixel = Math.floor(start); pixel < end; pixel++) {
        parts.push([pixel, (Math.min(pixel + 1, end) - Math.max(pixel, start)) * scale]);
      }
      return parts;
    });
  }

  function centred({ width, height, values }) {
    let [mass, across, down, most] = [0, 0, 0, 0];
    values.forEach((value, index) => {
      mass += value;
      across += value * (index % width);
      down += value * Math.floor(index / width);
      most = Math.max(most, value);
    });
    const left = inside(Math.round(CENTRE - across / mass), width);
    const top = inside(Math.round(CENTRE - down / mass), height);
    const image = new Uint8Array(SIDE * SIDE);
    values.forEach((value, index) => {
      // The whitest pixel of a digit of MNIST's is white, however thin the pen.
      image[(top + Math.floor(index / width)) * SIDE + left + (index % width)] = Math.round((255 * value) / most);
    });
    return image;
  }

  function inside(start, length) {
    return Math.max(0, Math.min(start, SIDE - length));
  }

  return { sheet, line, asMnist };
})();
