// Points in space, drawn by the processor: as fast without a graphics card, and the same on every machine.

// Whether a place (x, y), in units of the radius, is inside each shape.
const SHAPES = [
  (x, y) => x * x + y * y < 1,
  (x, y) => Math.max(Math.abs(x), Math.abs(y)) < 0.86,
  (x, y) => y < 0.8 && y > -1.05 + 1.85 * Math.abs(x) / 1.08,
  (x, y) => Math.abs(x) + Math.abs(y) < 1.2,
  (x, y) => Math.abs(Math.abs(x) - Math.abs(y)) < 0.5 && Math.max(Math.abs(x), Math.abs(y)) < 1,
  (x, y) => Math.min(Math.abs(x), Math.abs(y)) < 0.38 && Math.max(Math.abs(x), Math.abs(y)) < 1.1,
  (x, y) => y > -0.8 && -y > -1.05 + 1.85 * Math.abs(x) / 1.08,
  (x, y) => { const r = x * x + y * y; return r < 1.15 && r > 0.36; },
];

// A shape's pixels: places, and of 256 how much is the shape's colour and how much of the rest the paper's, as a rim.
function stampOf(shape, radius) {
  const inside = SHAPES[shape], rim = radius >= 2.6 ? 0.9 : 0, most = Math.ceil(radius * 1.25 + rim);
  const x = [], y = [], fill = [], edge = [];
  const part = (px, py, r) => {
    let count = 0;
    for (let i = 0; i < 16; i++) {
      if (inside((px + ((i % 4) - 1.5) / 4) / r, (py + ((i >> 2) - 1.5) / 4) / r)) count += 1;
    }
    return count * 16;
  };
  for (let py = -most; py <= most; py++) {
    for (let px = -most; px <= most; px++) {
      const covered = part(px, py, radius);
      const rimmed = rim ? Math.round(part(px, py, radius + rim) * 0.75) : 0;
      if (covered || rimmed) {
        x.push(px);
        y.push(py);
        fill.push(covered);
        edge.push(rimmed);
      }
    }
  }
  return {most, x: Int16Array.from(x), y: Int16Array.from(y), fill: Int16Array.from(fill), edge: Int16Array.from(edge)};
}

const DISTANCE = 3.4;
const MOST_PIXELS = 2.4e6;
const DEPTHS = 2048;

class Cloud {
  // grid: three whole numbers a point. Colours are 0xBBGGRR, as the canvas stores them.
  constructor(canvas, grid) {
    this.canvas = canvas;
    this.n = grid.length / 3;
    this.color = new Uint32Array(this.n);
    this.shape = new Uint8Array(this.n);
    this.weight = new Float32Array(this.n).fill(1);
    this.visible = new Uint8Array(this.n).fill(1);
    this.lineTo = new Int32Array(this.n).fill(-1);
    this.showLines = true;
    this.lineColor = 0;
    this.paper = 0xffffff;
    this.ink = "#000";
    this.chosen = [];
    this.x = new Float32Array(this.n);
    this.y = new Float32Array(this.n);
    this.depth = new Float32Array(this.n);
    this.stamps = new Map();
    this.place(grid);
    this.reset();
    this.frames = 0;
    new ResizeObserver(() => this.redraw()).observe(canvas);
    this.listen();
  }

  // Coordinates about the median, in units of a radius within which nearly all points lie.
  place(grid) {
    const middle = [0, 1, 2].map((axis) => {
      const values = grid.filter((_, k) => k % 3 === axis).sort();
      return values[values.length >> 1];
    });
    const squares = new Float32Array(this.n);
    for (let i = 0; i < this.n; i++) {
      for (let axis = 0; axis < 3; axis++) squares[i] += (grid[3 * i + axis] - middle[axis]) ** 2;
    }
    const radius = Math.sqrt(squares.slice().sort()[Math.floor(0.985 * (this.n - 1))]) || 1;
    this.points = new Float32Array(3 * this.n);
    for (let k = 0; k < this.points.length; k++) this.points[k] = (grid[k] - middle[k % 3]) / radius;
  }

  reset() {
    this.yaw = 0.55;
    this.pitch = 0.35;
    this.zoom = 1;
    this.pan = [0, 0];
    this.centre = [0, 0, 0];
    this.fill();
    this.redraw();
  }

  // Points that leave most of the canvas empty, as flat or long clouds do, are enlarged up to twice.
  fill() {
    this.fit();
    this.project();
    const {width, height} = this.canvas, away = new Float32Array(this.n);
    for (let i = 0; i < this.n; i++) {
      away[i] = Math.max(Math.abs(this.x[i] - width / 2) / width, Math.abs(this.y[i] - height / 2) / height);
    }
    const most = away.sort()[Math.floor(0.985 * (this.n - 1))];
    this.zoom = Math.max(1, Math.min(2, 0.42 / Math.max(most, 0.01)));
  }

  redraw() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = 0;
      this.draw();
    });
  }

  fit() {
    const box = this.canvas.getBoundingClientRect();
    let scale = window.devicePixelRatio || 1;
    scale = Math.min(scale, Math.sqrt(MOST_PIXELS / Math.max(1, box.width * box.height)));
    const width = Math.max(1, Math.round(box.width * scale)), height = Math.max(1, Math.round(box.height * scale));
    if (!this.pixels || this.canvas.width !== width || this.canvas.height !== height) {
      this.canvas.width = width;
      this.canvas.height = height;
      this.context = this.canvas.getContext("2d");
      this.image = this.context.createImageData(width, height);
      this.pixels = new Uint32Array(this.image.data.buffer);
    }
    this.scale = scale;
  }

  project() {
    const {width, height} = this.canvas, {points, x, y, depth} = this;
    const focus = 0.5 * Math.min(width, height) * DISTANCE * this.zoom;
    const cy = Math.cos(this.yaw), sy = Math.sin(this.yaw), cp = Math.cos(this.pitch), sp = Math.sin(this.pitch);
    const [ox, oy, oz] = this.centre;
    const left = width / 2 + this.pan[0] * this.scale, top = height / 2 + this.pan[1] * this.scale;
    for (let i = 0, k = 0; i < this.n; i++, k += 3) {
      const px = points[k] - ox, py = points[k + 1] - oy, pz = points[k + 2] - oz;
      const across = cy * px + sy * pz, away = cy * pz - sy * px;
      const z = DISTANCE - (sp * py + cp * away);
      depth[i] = z;
      x[i] = left + (focus * across) / z;
      y[i] = top - (focus * (cp * py - sp * away)) / z;
    }
  }

  radius() {
    const base = this.n > 30000 ? 1.7 : this.n > 12000 ? 2 : this.n > 4000 ? 2.6 : this.n > 800 ? 3.6 : 5;
    return base * this.scale * Math.min(4, this.zoom ** 0.55);
  }

  stamp(shape, radius) {
    const step = Math.max(3, Math.min(80, Math.round(radius * 4)));
    const key = shape * 128 + step;
    if (!this.stamps.has(key)) this.stamps.set(key, stampOf(shape, step / 4));
    return this.stamps.get(key);
  }

  // Visible points, the farthest first.
  farthestFirst() {
    const near = Math.max(0.05, DISTANCE - 2.2), far = DISTANCE + 2.2, step = (DEPTHS - 1) / (far - near);
    const counts = new Int32Array(DEPTHS + 1), bucket = new Int16Array(this.n).fill(-1);
    for (let i = 0; i < this.n; i++) {
      if (!this.visible[i] || this.depth[i] < 0.05) continue;
      bucket[i] = DEPTHS - 1 - Math.max(0, Math.min(DEPTHS - 1, Math.round((this.depth[i] - near) * step)));
      counts[bucket[i] + 1] += 1;
    }
    for (let d = 0; d < DEPTHS; d++) counts[d + 1] += counts[d];
    const order = new Int32Array(counts[DEPTHS]);
    for (let i = 0; i < this.n; i++) if (bucket[i] >= 0) order[counts[bucket[i]]++] = i;
    return order;
  }

  draw() {
    this.fit();
    this.project();
    const paper = (this.paper | 0xff000000) >>> 0;
    this.pixels.fill(paper);
    if (this.showLines) this.drawLines();
    const base = this.radius(), {width, height} = this.canvas, pixels = this.pixels;
    const pr = this.paper & 255, pg = (this.paper >> 8) & 255, pb = (this.paper >> 16) & 255;
    for (const i of this.farthestFirst()) {
      const z = this.depth[i];
      const stamp = this.stamp(this.shape[i], Math.min(20, base * this.weight[i] * Math.min(2.5, DISTANCE / z)));
      const cx = Math.round(this.x[i]), cy = Math.round(this.y[i]), most = stamp.most;
      if (cx < most || cy < most || cx >= width - most || cy >= height - most) continue;
      // What is far away pales into the paper.
      const haze = Math.max(0, Math.min(0.6, 0.28 * (z - DISTANCE + 1)));
      const r = (this.color[i] & 255) * (1 - haze) + pr * haze;
      const g = ((this.color[i] >> 8) & 255) * (1 - haze) + pg * haze;
      const b = ((this.color[i] >> 16) & 255) * (1 - haze) + pb * haze;
      const solid = (0xff000000 | (b << 16) | (g << 8) | r) >>> 0;
      const {x, y, fill, edge} = stamp;
      for (let k = 0; k < x.length; k++) {
        const at = (cy + y[k]) * width + cx + x[k];
        const f = fill[k];
        if (f >= 256) {
          pixels[at] = solid;
          continue;
        }
        const old = pixels[at], e = ((256 - f) * edge[k]) >> 8, rest = 256 - f - e;
        pixels[at] = (0xff000000
          | (((((old >> 16) & 255) * rest + pb * e + b * f) >> 8) << 16)
          | (((((old >> 8) & 255) * rest + pg * e + g * f) >> 8) << 8)
          | (((old & 255) * rest + pr * e + r * f) >> 8)) >>> 0;
      }
    }
    this.context.putImageData(this.image, 0, 0);
    this.drawChosen();
    this.frames += 1;
    if (this.frames === 1) this.onfirst?.();
  }

  drawLines() {
    const {width, height} = this.canvas, pixels = this.pixels;
    const r = this.lineColor & 255, g = (this.lineColor >> 8) & 255, b = (this.lineColor >> 16) & 255;
    let count = 0;
    for (let i = 0; i < this.n; i++) if (this.lineTo[i] >= 0) count += 1;
    const strength = count > 10000 ? 60 : count > 2000 ? 90 : 130;
    for (let i = 0; i < this.n; i++) {
      const j = this.lineTo[i];
      if (j < 0 || !this.visible[i] || !this.visible[j] || this.depth[i] < 0.05 || this.depth[j] < 0.05) continue;
      let from = 0, to = 1;
      const x = this.x[i], y = this.y[i], dx = this.x[j] - x, dy = this.y[j] - y;
      // The part of the line that is on the canvas.
      for (const [start, step, most] of [[x, dx, width - 1], [y, dy, height - 1]]) {
        if (step === 0) {
          if (start < 0 || start > most) to = -1;
        } else {
          const a = -start / step, z = (most - start) / step;
          from = Math.max(from, Math.min(a, z));
          to = Math.min(to, Math.max(a, z));
        }
      }
      if (from > to) continue;
      const steps = Math.max(1, Math.ceil(Math.max(Math.abs(dx), Math.abs(dy)) * (to - from)));
      for (let k = 0; k <= steps; k++) {
        const t = from + ((to - from) * k) / steps;
        const at = Math.round(y + t * dy) * width + Math.round(x + t * dx);
        const old = pixels[at], rest = 256 - strength;
        pixels[at] = (0xff000000
          | (((((old >> 16) & 255) * rest + b * strength) >> 8) << 16)
          | (((((old >> 8) & 255) * rest + g * strength) >> 8) << 8)
          | (((old & 255) * rest + r * strength) >> 8)) >>> 0;
      }
    }
  }

  // The chosen image, with lines to the others of its group; the first of the list is the image itself.
  drawChosen() {
    const [own, ...others] = this.chosen;
    if (own === undefined || this.depth[own] < 0.05) return;
    const context = this.context, unit = this.scale, base = this.radius();
    context.strokeStyle = this.ink;
    context.lineWidth = unit;
    context.globalAlpha = 0.7;
    for (const other of others) {
      if (this.depth[other] < 0.05) continue;
      context.beginPath();
      context.moveTo(this.x[own], this.y[own]);
      context.lineTo(this.x[other], this.y[other]);
      context.stroke();
      context.beginPath();
      context.arc(this.x[other], this.y[other], base + 3 * unit, 0, 2 * Math.PI);
      context.stroke();
    }
    context.globalAlpha = 1;
    context.lineWidth = 2.5 * unit;
    context.beginPath();
    context.arc(this.x[own], this.y[own], base * 1.3 + 5 * unit, 0, 2 * Math.PI);
    context.stroke();
  }

  // The point at a place on the canvas in CSS pixels, -1 for none: of those within reach the one nearest to it.
  at(left, top) {
    const px = left * this.scale, py = top * this.scale, reach = this.radius() * 1.5 + 5 * this.scale;
    let best = -1, least = reach * reach;
    for (let i = 0; i < this.n; i++) {
      if (!this.visible[i] || this.depth[i] < 0.05) continue;
      const square = (this.x[i] - px) ** 2 + (this.y[i] - py) ** 2;
      if (square < least || (square === least && best >= 0 && this.depth[i] < this.depth[best])) {
        best = i;
        least = square;
      }
    }
    return best;
  }

  // Where a point is on the canvas, in CSS pixels.
  placeOf(i) { return [this.x[i] / this.scale, this.y[i] / this.scale]; }

  turn(yaw, pitch) {
    this.yaw += yaw;
    this.pitch = Math.max(-1.55, Math.min(1.55, this.pitch + pitch));
    this.redraw();
  }

  zoomBy(factor) {
    const zoom = Math.max(0.2, Math.min(60, this.zoom * factor));
    this.pan = this.pan.map((p) => (p * zoom) / this.zoom);
    this.zoom = zoom;
    this.redraw();
  }

  // Turn about this point from now on.
  lookAt(i) {
    this.centre = [...this.points.subarray(3 * i, 3 * i + 3)];
    this.pan = [0, 0];
    this.redraw();
  }

  listen() {
    const {canvas} = this, held = new Map();
    let moved = 0;
    const spread = () => {
      const [a, b] = [...held.values()];
      return Math.hypot(a.x - b.x, a.y - b.y);
    };
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      held.set(event.pointerId, {x: event.clientX, y: event.clientY});
      moved = 0;
      this.onhover?.(-1);
    });
    canvas.addEventListener("pointermove", (event) => {
      const before = held.get(event.pointerId);
      if (!before) {
        if (event.pointerType !== "touch") {
          const point = this.at(event.offsetX, event.offsetY);
          canvas.style.cursor = point >= 0 ? "pointer" : "";
          this.onhover?.(point);
        }
        return;
      }
      const dx = event.clientX - before.x, dy = event.clientY - before.y;
      moved += Math.abs(dx) + Math.abs(dy);
      const wide = held.size === 2 ? spread() : 0;
      held.set(event.pointerId, {x: event.clientX, y: event.clientY});
      if (held.size === 2) {
        this.zoomBy(spread() / Math.max(1, wide));
      } else if (event.shiftKey || event.buttons & 6) {
        this.pan = [this.pan[0] + dx, this.pan[1] + dy];
        this.redraw();
      } else {
        this.turn(dx * 0.008, dy * 0.008);
      }
    });
    const release = (event) => {
      if (held.delete(event.pointerId) && event.type === "pointerup" && moved < 5 && event.button === 0) {
        const box = canvas.getBoundingClientRect();
        const point = this.at(event.clientX - box.left - canvas.clientLeft, event.clientY - box.top - canvas.clientTop);
        if (point >= 0) this.onpick?.(point);
      }
    };
    canvas.addEventListener("pointerup", release);
    canvas.addEventListener("pointercancel", release);
    canvas.addEventListener("pointerleave", () => this.onhover?.(-1));
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("dblclick", (event) => {
      const point = this.at(event.offsetX, event.offsetY);
      if (point >= 0) this.lookAt(point);
    });
    // The wheel scrolls the page until the points are clicked on.
    canvas.addEventListener("wheel", (event) => {
      if (document.activeElement !== canvas && !event.ctrlKey) return;
      event.preventDefault();
      this.zoomBy(Math.exp(-Math.max(-100, Math.min(100, event.deltaY)) * 0.002));
    }, {passive: false});
    canvas.addEventListener("keydown", (event) => {
      const act = {
        ArrowLeft: () => this.turn(-0.12, 0), ArrowRight: () => this.turn(0.12, 0),
        ArrowUp: () => this.turn(0, -0.12), ArrowDown: () => this.turn(0, 0.12),
        "+": () => this.zoomBy(1.25), "=": () => this.zoomBy(1.25), "-": () => this.zoomBy(0.8), 0: () => this.reset(),
      }[event.key];
      if (act && !event.ctrlKey && !event.metaKey && !event.altKey) {
        event.preventDefault();
        act();
      }
    });
  }
}
