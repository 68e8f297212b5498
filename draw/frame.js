// A drawing becomes an MNIST image: picture.py once more, step by step and to the grey value, for even paper.
// tests/test_draw.py compares the two on a thousand drawings. The numbers are those of picture.py, which explains them.
// What nobody draws is left out: uneven light, what comes in from the border, and a sheet of paper on a table.
"use strict";

const SEPARABLE = 0.71, FAINT = 0.1, SPECK = 0.03, MARK = 0.1;

/**
 * Return a drawing as MNIST would have it: 784 grey values, 0 (background) to 255, row by row.
 *
 * Throws an Error, with the words of picture.py, where what is drawn is not one digit.
 *
 * @param {Uint8Array} pixels - grey values, row by row; the paper is one value, and nothing is drawn at the border
 * @param {number} height
 * @param {number} width
 */
function readDrawing(pixels, height, width) {
  const picture = { values: Float64Array.from(pixels), height, width };
  if (pixels.every((value) => value === pixels[0])) throw new Error("expected a picture of a digit, got one colour everywhere");
  const largest = pixels.reduce((a, b) => Math.max(a, b));
  return asMnist(findInk(picture, largest));
}

function findInk(picture, largest) {
  let ink = abovePaper(picture, border(picture));
  let threshold = otsu(ink.values);
  const far = above(ink, threshold);
  const box = boxOf(far);
  const margin = Math.max(2, roundHalfEven(0.25 * Math.max(box.bottom - box.top, box.right - box.left)));
  const place = {
    top: Math.max(0, box.top - margin), bottom: Math.min(picture.height, box.bottom + margin),
    left: Math.max(0, box.left - margin), right: Math.min(picture.width, box.right + margin),
  };
  const paper = cut(dilated(dilated(far)), place);
  paper.values.forEach((value, i) => { paper.values[i] = 1 - value; });
  picture = cut(picture, place);
  ink = abovePaper(picture, mean(paper.values) > 0.1 ? paper : border(picture));
  threshold = otsu(ink.values);
  const strong = above(ink, threshold);
  complain(ink, strong, largest);
  const edge = border(ink).values;
  const reaches = (mask) => mask.values.some((value, i) => value && edge[i]);
  const weakest = hysteresis(ink, threshold / 4, threshold);
  let found = weakest;
  for (const part of [2, 1]) if (reaches(found)) found = hysteresis(ink, threshold / part, threshold);
  const mask = oneDigit(ink, reaches(found) ? weakest : found);
  const full = percentile(ink.values.filter((_, i) => mask.values[i] && strong.values[i]), 98);
  const values = ink.values.map((value, i) => Math.min(Math.max((mask.values[i] * value) / full, 0), 1));
  const digit = cut({ ...ink, values }, boxOf(mask));
  const [less, more] = [digit.height, digit.width].sort((a, b) => a - b);
  if (less >= more / 2 && mean(digit.values) > 0.85) {
    throw new Error("expected a digit, got a filled area: is there a frame, or a table around the paper? Cut it off.");
  }
  return digit;
}

// How far each pixel differs from the paper, in the direction in which the ink does.
function abovePaper(picture, paper) {
  const level = percentile(picture.values.filter((_, i) => paper.values[i]), 50);
  const values = picture.values.map((value) => value - level);
  const sign = values.reduce((sum, value) => sum + value * value * value, 0) > 0 ? 1 : -1;
  return { ...picture, values: values.map((value) => sign * value) };
}

function complain(ink, strong, largest) {
  const share = mean(strong.values);
  const inside = mean(ink.values.filter((_, i) => strong.values[i]));
  const difference = inside - mean(ink.values.filter((_, i) => !strong.values[i]));
  const average = mean(ink.values);
  const variance = mean(ink.values.map((value) => (value - average) ** 2));
  let changes = 0, pairs = 0;
  for (let y = 0; y < ink.height; y++) {
    for (let x = 0; x < ink.width; x++) {
      const here = strong.values[y * ink.width + x];
      if (x + 1 < ink.width) { pairs++; changes += here !== strong.values[y * ink.width + x + 1]; }
      if (y + 1 < ink.height) { pairs++; changes += here !== strong.values[(y + 1) * ink.width + x]; }
    }
  }
  if (share * (1 - share) * difference ** 2 < SEPARABLE * variance || changes / pairs > 0.9 * 2 * share * (1 - share)) {
    throw new Error("expected a digit on an even ground, got a picture in which no ink stands out from the rest: " +
      "cut out the digit, or take a stronger pen, or more even light");
  }
  if (difference < FAINT * largest) {
    const percent = roundHalfEven((100 * difference) / largest);
    throw new Error(
      "expected ink that is clearly darker or lighter than the paper, got a difference of " +
      `${percent} % of the largest value: take a stronger pen, or more light`
    );
  }
}

// The mask without dirt.
function oneDigit(ink, mask) {
  const marks = label(mask, true);
  const weights = new Float64Array(marks.count + 1);
  ink.values.forEach((value, i) => { if (marks.values[i]) weights[marks.values[i]] += value; });
  const heaviest = weights.reduce((a, b) => Math.max(a, b)), all = weights.reduce((a, b) => a + b, 0);
  const clean = { ...mask, values: mask.values.map((value, i) => value && weights[marks.values[i]] >= SPECK * heaviest ? 1 : 0) };
  const whole = boxOf(clean), height = whole.bottom - whole.top, width = whole.right - whole.left;
  if (weights.filter((weight) => weight >= SPECK * heaviest).length > 5) {
    throw new Error("expected one digit, got many marks: is the paper ruled? Cut out one digit.");
  }
  const heavy = [];
  weights.forEach((weight, number) => {
    if (weight >= MARK * all) heavy.push(boxOf({ ...marks, values: marks.values.map((value) => (value === number ? 1 : 0)) }));
  });
  const area = (box) => (box.bottom - box.top) * (box.right - box.left);
  heavy.sort((a, b) => area(a) - area(b));
  for (let i = 0; i + 1 < heavy.length; i++) {
    const a = heavy[i], b = heavy[i + 1];
    if (b.top < a.top && a.bottom < b.bottom && b.left < a.left && a.right < b.right) {
      throw new Error("expected a digit alone, got one with something around it: is there a frame? Cut it off.");
    }
    const rows = Math.max(a.top, b.top) - Math.min(a.bottom, b.bottom);
    const columns = Math.max(a.left, b.left) - Math.min(a.right, b.right);
    const bothHigh = Math.min(a.bottom - a.top, b.bottom - b.top) >= 0.6 * height;
    if (Math.max(rows, columns) >= 0.15 * Math.max(height, width) || height / width < 0.75 || height / width > 2 ||
        (columns >= 0 && bothHigh)) {
      throw new Error("expected one digit, got several marks beside each other: cut out one of them");
    }
  }
  if (height < 0.4 * width) {
    throw new Error("expected a digit, got a line, or several digits that touch each other: cut out one of them");
  }
  return clean;
}

function asMnist(ink) {
  const factor = 20 / Math.max(ink.height, ink.width);
  const [height, width] = [ink.height, ink.width].map((side) => Math.max(1, roundHalfEven(side * factor)));
  const small = resized({ ...ink, values: ink.values.map((value) => Math.fround(255 * value)) }, height, width);
  const values = small.values.map((value) => Math.min(Math.max(value, 0), 255));
  const darkest = values.reduce((a, b) => Math.max(a, b));
  const grey = values.map((value) => value * (255 / darkest));
  const rows = new Float64Array(height), columns = new Float64Array(width);
  grey.forEach((value, i) => { rows[Math.floor(i / width)] += value; columns[i % width] += value; });
  const place = (mass) => {
    const all = mass.reduce((a, b) => a + b, 0);
    const centre = mass.reduce((sum, value, i) => sum + value * (i + 0.5), 0) / all;
    return Math.min(Math.max(roundHalfEven(Math.round((14.5 - centre) * 1e6) / 1e6), 0), 28 - mass.length);
  };
  const [top, left] = [place(rows), place(columns)];
  const result = new Uint8Array(784);
  grey.forEach((value, i) => { result[(top + Math.floor(i / width)) * 28 + left + (i % width)] = roundHalfEven(value); });
  return result;
}

// ------------------------------------------------- what NumPy, scikit-image and Pillow do for picture.py ----

// As Python rounds: halves to the even neighbour.
function roundHalfEven(value) {
  const low = Math.floor(value), rest = value - low;
  return rest < 0.5 || (rest === 0.5 && low % 2 === 0) ? low : low + 1;
}

function mean(values) {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

function percentile(values, percent) {
  const sorted = values.slice().sort(), place = (percent / 100) * (sorted.length - 1), low = Math.floor(place);
  const high = Math.min(low + 1, sorted.length - 1), part = place - low, step = sorted[high] - sorted[low];
  return part < 0.5 ? sorted[low] + step * part : sorted[high] - step * (1 - part);  // as NumPy rounds
}

function border(picture) {
  const values = new Float64Array(picture.height * picture.width);
  values.forEach((_, i) => {
    const y = Math.floor(i / picture.width), x = i % picture.width;
    values[i] = y === 0 || x === 0 || y === picture.height - 1 || x === picture.width - 1 ? 1 : 0;
  });
  return { ...picture, values };
}

function above(picture, threshold) {
  return { ...picture, values: picture.values.map((value) => (value > threshold ? 1 : 0)) };
}

function boxOf(mask) {
  const box = { top: mask.height, bottom: 0, left: mask.width, right: 0 };
  mask.values.forEach((value, i) => {
    if (!value) return;
    const y = Math.floor(i / mask.width), x = i % mask.width;
    box.top = Math.min(box.top, y); box.bottom = Math.max(box.bottom, y + 1);
    box.left = Math.min(box.left, x); box.right = Math.max(box.right, x + 1);
  });
  return box;
}

function cut(picture, { top, bottom, left, right }) {
  const height = bottom - top, width = right - left, values = new Float64Array(height * width);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) values[y * width + x] = picture.values[(top + y) * picture.width + left + x];
  }
  return { values, height, width };
}

// Each pixel that has ink above, below, left, right or in it.
function dilated(mask) {
  const { height, width } = mask, values = Float64Array.from(mask.values);
  mask.values.forEach((value, i) => {
    if (!value) return;
    const y = Math.floor(i / width), x = i % width;
    if (y > 0) values[i - width] = 1;
    if (y < height - 1) values[i + width] = 1;
    if (x > 0) values[i - 1] = 1;
    if (x < width - 1) values[i + 1] = 1;
  });
  return { ...mask, values };
}

// The threshold between two classes that differ most (Otsu, 1979), from 256 groups of values, as scikit-image has it.
function otsu(values) {
  const low = values.reduce((a, b) => Math.min(a, b)), high = values.reduce((a, b) => Math.max(a, b));
  const edge = (i) => (i === 256 ? high : low + i * ((high - low) / 256));
  const counts = new Float64Array(256);
  for (const value of values) {
    let i = Math.min(255, Math.floor(((value - low) / (high - low)) * 256));
    if (value < edge(i)) i--;
    else if (i < 255 && value >= edge(i + 1)) i++;
    counts[i]++;
  }
  const centres = counts.map((_, i) => (edge(i) + edge(i + 1)) / 2);
  const below = new Float64Array(256), over = new Float64Array(256), sumBelow = new Float64Array(256), sumOver = new Float64Array(256);
  for (let i = 0, count = 0, sum = 0; i < 256; i++) {
    below[i] = count += counts[i];
    sumBelow[i] = sum += counts[i] * centres[i];
  }
  for (let i = 255, count = 0, sum = 0; i >= 0; i--) {
    over[i] = count += counts[i];
    sumOver[i] = sum += counts[i] * centres[i];
  }
  let best = 0, largest = -1;
  for (let i = 0; i < 255; i++) {
    const distance = sumBelow[i] / below[i] - sumOver[i + 1] / over[i + 1];
    const variance = Math.fround(below[i] * over[i + 1]) * distance ** 2;
    if (variance > largest) { largest = variance; best = i; }
  }
  return centres[best];
}

// Number the connected parts of a mask, from 1 on, in the order of their first pixels.
function label(mask, corners) {
  const { height, width } = mask, values = new Int32Array(height * width), steps = [[0, 1], [1, 0], [0, -1], [-1, 0]];
  if (corners) steps.push([1, 1], [1, -1], [-1, 1], [-1, -1]);
  let count = 0;
  mask.values.forEach((value, start) => {
    if (!value || values[start]) return;
    values[start] = ++count;
    const waiting = [start];
    while (waiting.length) {
      const i = waiting.pop(), y = Math.floor(i / width), x = i % width;
      for (const [down, right] of steps) {
        if (y + down < 0 || y + down >= height || x + right < 0 || x + right >= width) continue;
        const next = i + down * width + right;
        if (mask.values[next] && !values[next]) { values[next] = count; waiting.push(next); }
      }
    }
  });
  return { values, count, height, width };
}

// What is above the low threshold and joined to something above the high one.
function hysteresis(picture, low, high) {
  const parts = label(above(picture, low), false), strong = new Set();
  picture.values.forEach((value, i) => { if (value > high) strong.add(parts.values[i]); });
  return { ...picture, values: Float64Array.from(parts.values, (part) => (part && strong.has(part) ? 1 : 0)) };
}

// Pillow's bicubic filter, first along the rows, then along the columns, kept as float32 in between.
function resized(picture, height, width) {
  const across = filtered(picture.values, picture.height, picture.width, width, picture.width, 1);
  const down = filtered(across, width, picture.height, height, 1, width);
  return { values: down, height, width };
}

function filtered(values, lines, size, newSize, lineStep, step) {
  const along = step === 1, result = new Float64Array(lines * newSize);
  if (newSize === size) return values;
  const scale = size / newSize, filterScale = Math.max(scale, 1), support = 2 * filterScale;
  for (let place = 0; place < newSize; place++) {
    const centre = (place + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5)), last = Math.min(size, Math.trunc(centre + support + 0.5));
    const weights = [];
    let all = 0;
    for (let i = first; i < last; i++) {
      const weight = bicubic((i - centre + 0.5) * (1 / filterScale));
      weights.push(weight);
      all += weight;
    }
    for (let i = 0; i < weights.length; i++) weights[i] *= 1 / all;
    for (let line = 0; line < lines; line++) {
      let sum = 0;
      for (let i = first; i < last; i++) sum += values[line * lineStep + i * step] * weights[i - first];
      result[along ? line * newSize + place : place * lines + line] = Math.fround(sum);
    }
  }
  return result;
}

function bicubic(x) {
  const a = -0.5;
  x = Math.abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}
