// The forward pass of a trained network in plain JavaScript, one image at a time: what torch computes in eval mode.
//
// A network is a list of layers in the order of their calls, as network.py describes them. A tensor is its values and
// its shape: [channels, height, width], or [features] behind a flatten. Sums are in double precision.
"use strict";

const forward = (() => {
  const LAYERS = { conv, linear, affine, max_pool, average_pool, adaptive_average_pool, flatten, relu, leaky_relu, silu, gelu };
  const SIDE = 28;
  const STORED = ["weight", "bias", "factor", "shift"];

  // The layers with their weights, float32 in base64, as numbers.
  function prepared(layers) {
    return layers.map((layer) => {
      const ready = { ...layer };
      for (const name of STORED) if (typeof layer[name] === "string") ready[name] = numbers(layer[name]);
      return ready;
    });
  }

  function numbers(base64) {
    const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
    return new Float32Array(bytes.buffer);
  }

  // The logits of one image: 28 × 28 normalised values. With `shifts` the mean of five: of the image as it is, and
  // shifted by so many pixels up, down, left and right, `background` coming in from the edge.
  function logits(layers, values, shifts, background) {
    const whole = once(layers, values);
    if (!shifts) return whole;
    const others = [[-shifts, 0], [shifts, 0], [0, -shifts], [0, shifts]];
    for (const [down, right] of others) once(layers, shifted(values, down, right, background)).forEach((logit, index) => (whole[index] += logit));
    return whole.map((sum) => sum / (1 + others.length));
  }

  function once(layers, values) {
    let tensor = { values, shape: [1, SIDE, SIDE] };
    for (const layer of layers) tensor = LAYERS[layer.kind](tensor, layer);
    return Array.from(tensor.values);
  }

  function shifted(values, down, right, background) {
    const moved = new Float64Array(values.length).fill(background);
    for (let y = Math.max(0, down); y < Math.min(SIDE, SIDE + down); y++) {
      for (let x = Math.max(0, right); x < Math.min(SIDE, SIDE + right); x++) moved[y * SIDE + x] = values[(y - down) * SIDE + x - right];
    }
    return moved;
  }

  function conv({ values, shape: [, height, width] }, layer) {
    const [outputs, inputs, kernelHeight, kernelWidth] = layer.shape; // inputs of one group
    const rows = reaches(height, kernelHeight, layer.stride[0], layer.padding[0], layer.dilation[0]);
    const columns = reaches(width, kernelWidth, layer.stride[1], layer.padding[1], layer.dilation[1]);
    const size = rows.count * columns.count;
    const result = new Float64Array(outputs * size);
    let next = 0; // of the weights
    for (let output = 0; output < outputs; output++) {
      const plane = result.subarray(output * size, (output + 1) * size);
      if (layer.bias) plane.fill(layer.bias[output]);
      const group = Math.floor((output * layer.groups) / outputs);
      for (let input = group * inputs; input < (group + 1) * inputs; input++) {
        const from = values.subarray(input * height * width, (input + 1) * height * width);
        for (const row of rows.taps) {
          for (const column of columns.taps) addShifted(plane, columns.count, from, width, row, column, layer.weight[next++]);
        }
      }
    }
    return { values: result, shape: [outputs, rows.count, columns.count] };
  }

  // Along one axis: how many outputs there are and, for each place in the kernel, which of them (first to last) it
  // reaches inside the image, from `offset` on in steps of `stride`. Outside lies padding, which is zero.
  function reaches(size, kernel, stride, padding, dilation) {
    const count = Math.floor((size + 2 * padding - dilation * (kernel - 1) - 1) / stride) + 1;
    const taps = [];
    for (let place = 0; place < kernel; place++) {
      const offset = place * dilation - padding;
      const first = Math.max(0, Math.ceil(-offset / stride));
      const last = Math.min(count - 1, Math.floor((size - 1 - offset) / stride));
      taps.push({ offset, stride, first, last });
    }
    return { count, taps };
  }

  function addShifted(plane, planeWidth, from, fromWidth, row, column, weight) {
    const { first, last, stride } = column;
    for (let y = row.first; y <= row.last; y++) {
      const to = y * planeWidth;
      const start = (y * row.stride + row.offset) * fromWidth + column.offset;
      for (let x = first; x <= last; x++) plane[to + x] += weight * from[start + x * stride];
    }
  }

  function linear({ values }, { weight, bias, shape: [outputs, inputs] }) {
    const result = new Float64Array(outputs);
    for (let output = 0; output < outputs; output++) {
      let sum = bias ? bias[output] : 0;
      for (let input = 0; input < inputs; input++) sum += weight[output * inputs + input] * values[input];
      result[output] = sum;
    }
    return { values: result, shape: [outputs] };
  }

  // Batch norm, whose statistics stand still in evaluation: each channel times a factor, plus a shift.
  function affine({ values, shape }, { factor, shift }) {
    const size = values.length / shape[0];
    return { values: values.map((value, index) => value * factor[Math.floor(index / size)] + shift[Math.floor(index / size)]), shape };
  }

  function max_pool({ values, shape }, { kernel, stride, padding }) {
    return pooled(values, shape, windows(shape[1], kernel[0], stride[0], padding[0]), windows(shape[2], kernel[1], stride[1], padding[1]), Math.max, -Infinity, false);
  }

  function average_pool({ values, shape }, { kernel, stride }) {
    return pooled(values, shape, windows(shape[1], kernel[0], stride[0], 0), windows(shape[2], kernel[1], stride[1], 0), plus, 0, true);
  }

  function adaptive_average_pool({ values, shape }, { size }) {
    return pooled(values, shape, shares(shape[1], size[0]), shares(shape[2], size[1]), plus, 0, true);
  }

  function plus(a, b) {
    return a + b;
  }

  // Windows along one axis, [start, end) each, cut off where the image ends.
  function windows(size, kernel, stride, padding) {
    const count = Math.floor((size + 2 * padding - kernel) / stride) + 1;
    const starts = Array.from({ length: count }, (_, index) => index * stride - padding);
    return starts.map((start) => [Math.max(start, 0), Math.min(start + kernel, size)]);
  }

  function shares(size, count) {
    return Array.from({ length: count }, (_, index) => [Math.floor((index * size) / count), Math.ceil(((index + 1) * size) / count)]);
  }

  function pooled(values, [channels, height, width], rows, columns, combine, first, average) {
    const result = new Float64Array(channels * rows.length * columns.length);
    let next = 0;
    for (let channel = 0; channel < channels; channel++) {
      for (const [top, bottom] of rows) {
        for (const [left, right] of columns) {
          let whole = first;
          for (let y = top; y < bottom; y++) {
            for (let x = left; x < right; x++) whole = combine(whole, values[(channel * height + y) * width + x]);
          }
          result[next++] = average ? whole / ((bottom - top) * (right - left)) : whole;
        }
      }
    }
    return { values: result, shape: [channels, rows.length, columns.length] };
  }

  function flatten({ values }) {
    return { values, shape: [values.length] };
  }

  function relu({ values, shape }) {
    return { values: values.map((value) => Math.max(value, 0)), shape };
  }

  function leaky_relu({ values, shape }, { slope }) {
    return { values: values.map((value) => (value > 0 ? value : slope * value)), shape };
  }

  function silu({ values, shape }) {
    return { values: values.map((value) => value / (1 + Math.exp(-value))), shape };
  }

  function gelu({ values, shape }) {
    return { values: values.map((value) => (value / 2) * (1 + erf(value / Math.SQRT2))), shape };
  }

  // Abramowitz and Stegun 7.1.26: to 1.5e-7.
  function erf(x) {
    const t = 1 / (1 + 0.3275911 * Math.abs(x));
    const polynomial = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
    return Math.sign(x) * (1 - polynomial * Math.exp(-x * x));
  }

  return { prepared, logits };
})();
