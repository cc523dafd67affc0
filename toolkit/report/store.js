// What the page carries: facts, arrays, and sheets of thumbnails.

const element = (id) => document.getElementById(id);

function bytesOf(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

async function inflated(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

const KINDS = {
  uint8: Uint8Array, int8: Int8Array, uint16: Uint16Array, int16: Int16Array, int32: Int32Array, uint32: Uint32Array,
  float32: Float32Array, float64: Float64Array,
};

// All arrays of the page by name; their text is let go.
async function readArrays() {
  const found = {};
  await Promise.all([...document.querySelectorAll("script[id^='array-']")].map(async (node) => {
    const buffer = await inflated(bytesOf(node.textContent));
    const kind = node.dataset.type;
    found[node.id.slice("array-".length)] = kind === "json"
      ? JSON.parse(new TextDecoder().decode(buffer)) : new KINDS[kind](buffer);
    node.remove();
  }));
  return found;
}

const SHEETS_HELD = 16;

// Draws thumbnails. A sheet is decoded when the first of its images is wanted, and a few are held.
class Thumbnails {
  constructor(facts, shown, arrays) {
    const {sizes} = arrays, nImages = facts.images;
    this.facts = facts.sheets;
    this.boxes = facts.boxes?.drawn ? new Boxes(facts.boxes, arrays) : null;
    this.showBoxes = true;
    this.sizes = sizes;
    this.place = new Int32Array(nImages).fill(-1);
    shown.forEach((index, place) => { this.place[index] = place; });
    this.blobs = new Map();
    this.bitmaps = new Map();
    this.broken = 0;
  }

  // Whether an image has a thumbnail: it is among those shown, and could be read.
  has(index) {
    const place = this.place[index];
    return place >= 0 && this.sizes[2 * place] > 0;
  }

  // Width by height of most thumbnails.
  aspect() {
    const shapes = [];
    for (let k = 0; k < this.sizes.length; k += 2) if (this.sizes[k]) shapes.push(this.sizes[k] / this.sizes[k + 1]);
    return shapes.sort((a, b) => a - b)[shapes.length >> 1] || 1;
  }

  async blob(number) {
    if (!this.blobs.has(number)) {
      // The browser may still be reading the end of the file.
      while (document.readyState === "loading" && !element(`sheet-${number + 1}`)) {
        await new Promise((resolve) => { setTimeout(resolve, 30); });
      }
      const node = element(`sheet-${number}`);
      if (node) {
        this.blobs.set(number, new Blob([bytesOf(node.textContent)], {type: "image/webp"}));
        node.remove();
      }
    }
    return this.blobs.get(number);
  }

  bitmap(number) {
    let found = this.bitmaps.get(number);
    this.bitmaps.delete(number);
    if (!found) {
      found = this.blob(number).then((blob) => createImageBitmap(blob)).catch(() => { this.broken += 1; return null; });
      const oldest = this.bitmaps.keys().next().value;
      if (this.bitmaps.size >= SHEETS_HELD) {
        // Drawings that wait for it hold it still; it is freed with the last of them.
        this.bitmaps.delete(oldest);
      }
    }
    this.bitmaps.set(number, found);
    return found;
  }

  // Put an image's thumbnail on a canvas of its size; one without is marked. Resolves to whether it was drawn.
  async draw(canvas, index) {
    canvas.dataset.wanted = index;
    if (!this.has(index)) {
      missing(canvas);
      return false;
    }
    const {side, columns, perSheet} = this.facts;
    const place = this.place[index];
    const bitmap = await this.bitmap(Math.floor(place / perSheet));
    if (canvas.dataset.wanted !== String(index)) return false;
    if (!bitmap) {
      missing(canvas);
      return false;
    }
    const within = place % perSheet;
    const width = this.sizes[2 * place], height = this.sizes[2 * place + 1];
    const left = (within % columns) * side, top = Math.floor(within / columns) * side;
    const framed = this.showBoxes && this.boxes?.has(place);
    // With boxes a canvas has the pixels that it covers, so that lines are as wide on small pictures as on large ones.
    const scale = framed ? pixelsOn(canvas, width, height) : 1;
    canvas.width = Math.max(1, Math.round(scale * width));
    canvas.height = Math.max(1, Math.round(scale * height));
    canvas.classList.remove("missing");
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = side > 64 || scale < 1;
    context.imageSmoothingQuality = "high";
    context.drawImage(bitmap, left, top, width, height, 0, 0, canvas.width, canvas.height);
    if (framed) this.boxes.draw(context, place);
    canvas.dataset.drawn = index;
    return true;
  }

  // Draw what is on the page again.
  redraw() {
    for (const canvas of document.querySelectorAll("canvas[data-wanted]")) this.draw(canvas, Number(canvas.dataset.wanted));
  }
}

// The pixels of the screen that a canvas on the page has for each pixel of a picture that fills it.
function pixelsOn(canvas, width, height) {
  const wide = canvas.clientWidth || width, high = canvas.clientHeight || height;
  return Math.min(wide / width, high / height) * Math.min(3, window.devicePixelRatio || 1);
}

// The boxes of the images that have a thumbnail, by its place: edges from 0 to 255 across the image.
class Boxes {
  constructor({colors}, arrays) {
    this.colors = colors;
    this.classes = arrays["box-classes"];
    this.corners = arrays["box-corners"];
    const counts = arrays["box-counts"];
    this.start = new Int32Array(counts.length + 1);
    counts.forEach((count, place) => { this.start[place + 1] = this.start[place] + count; });
  }

  has(place) { return this.start[place + 1] > this.start[place]; }

  // Lines of one pixel of the page, of two with a dark rim on large pictures.
  draw(context, place) {
    const {width, height} = context.canvas, unit = Math.min(3, window.devicePixelRatio || 1);
    const large = Math.max(width, height) >= 240 * unit, line = unit * (large ? 2 : 1);
    const frame = (k, inset) => {
      const [x0, y0, x1, y1] = this.corners.subarray(4 * k, 4 * k + 4);
      const left = Math.round((x0 * width) / 255), top = Math.round((y0 * height) / 255);
      const right = Math.round((x1 * width) / 255), bottom = Math.round((y1 * height) / 255);
      context.strokeRect(
        Math.min(left, width - line) + inset, Math.min(top, height - line) + inset,
        Math.max(line, right - left - line), Math.max(line, bottom - top - line),
      );
    };
    context.lineJoin = "miter";
    for (let k = this.start[place]; k < this.start[place + 1]; k++) {
      if (large) {
        context.lineWidth = line + unit;
        context.strokeStyle = "rgb(0 0 0 / 45%)";
        frame(k, line / 2);
      }
      context.lineWidth = line;
      context.strokeStyle = this.colors[this.classes[k]];
      frame(k, line / 2);
    }
  }
}

function missing(canvas) {
  canvas.width = canvas.height = 8;
  canvas.classList.add("missing");
  delete canvas.dataset.drawn;
}

// Text as bytes: UTF-8, with the bytes of file names that are none (lone surrogates from U+DC80) as they were.
function encodedText(text) {
  const parts = [];
  const encoder = new TextEncoder();
  let start = 0;
  for (let i = 0; i < text.length; i++) {
    const unit = text.charCodeAt(i);
    if (unit >= 0xd800 && unit <= 0xdbff) {
      i += 1;
    } else if (unit >= 0xdc80 && unit <= 0xdcff) {
      parts.push(encoder.encode(text.slice(start, i)), Uint8Array.of(unit - 0xdc00));
      start = i + 1;
    }
  }
  parts.push(encoder.encode(text.slice(start)));
  return new Blob(parts, {type: "text/plain"});
}
