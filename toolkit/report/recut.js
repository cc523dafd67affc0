// Cuts at other budgets, as `toolkit/selection/recut.py` and `quota.py` make them, number for number.

const MIXED = -1;

// floor(fraction * count), the product first rounded to 9 decimals.
const fractionOf = (fraction, count) => Math.floor(Number((fraction * count).toFixed(9)));

const sum = (values) => { let total = 0; for (const value of values) total += value; return total; };

// The first place at which `values`, ascending, reach `wanted`.
function firstAtLeast(values, wanted) {
  let low = 0, high = values.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] < wanted) low = middle + 1; else high = middle;
  }
  return low;
}

function largestRemainder(total, sizes) {
  let whole = sum(sizes);
  if (whole === 0) {
    sizes = sizes.map(() => 1);
    whole = sizes.length;
  }
  const remainders = sizes.map((size) => (total * size) % whole);
  const seats = sizes.map((size, c) => (total * size - remainders[c]) / whole);
  const order = sizes.map((_, c) => c).sort((a, b) => remainders[b] - remainders[a] || a - b);
  const left = total - sum(seats);
  for (let k = 0; k < left; k++) seats[order[k]] += 1;
  return seats;
}

// Seats for classes in proportion to their sizes, by largest remainder, within bounds.
function allocate(total, sizes, low, high) {
  if (total < sum(low) || total > sum(high)) throw new RangeError(`${total} images cannot be spread over the classes`);
  const seats = sizes.map(() => 0);
  let free = sizes.map((_, c) => c);
  while (free.length) {
    const settled = new Set(free);
    const rest = total - sum(seats.filter((_, c) => !settled.has(c)));
    const shares = largestRemainder(rest, free.map((c) => sizes[c]));
    const below = free.filter((c, k) => shares[k] < low[c]), above = free.filter((c, k) => shares[k] > high[c]);
    if (!below.length && !above.length) {
      free.forEach((c, k) => { seats[c] = shares[k]; });
      break;
    }
    const shareOf = new Map(free.map((c, k) => [c, shares[k]]));
    const lacking = sum(below.map((c) => low[c] - shareOf.get(c)));
    const spare = sum(above.map((c) => shareOf.get(c) - high[c]));
    const [side, bound] = lacking >= spare ? [below, low] : [above, high];
    side.forEach((c) => { seats[c] = bound[c]; });
    free = free.filter((c) => !side.includes(c));
  }
  return seats;
}

// The same groups, numbered in the order of their first images; -1 stays.
function byFirst(group) {
  const numbers = new Map();
  return group.map((g) => {
    if (g < 0) return -1;
    if (!numbers.has(g)) numbers.set(g, numbers.size);
    return numbers.get(g);
  });
}

class Forest {
  constructor(facts, arrays) {
    this.n = facts.n_images;
    this.quota = facts.quota;
    this.floor = facts.floor;
    this.bounded = facts.linkage === "complete";
    this.codes = arrays["recut-codes"] || null;
    this.sizes = [...arrays["recut-sizes"]];
    this.preferred = new Uint8Array(this.n);
    for (const index of arrays["recut-preferred"]) this.preferred[index] = 1;
    const bounds = (name) => arrays[`recut-${name}`];
    const between = (name, offsets, c, wide = 1) =>
      arrays[`recut-${name}`].subarray(wide * bounds(offsets)[c], wide * bounds(offsets)[c + 1]);
    this.classes = this.sizes.map((_, c) => ({
      images: between("images", "image_offsets", c),
      children: between("children", "merge_offsets", c, 2),
      heights: between("heights", "merge_offsets", c),
      nodes: between("node_representatives", "merge_offsets", c),
      eventLeaf: between("event_leaf", "event_offsets", c),
      eventNode: between("event_node", "event_offsets", c),
      eventDistance: between("event_distance", "event_offsets", c),
    }));
    this.excluded = new Uint8Array(this.n).fill(1);
    for (const {images} of this.classes) for (const index of images) this.excluded[index] = 0;
    this.low = this.classes.map(({images}) =>
      Math.max(Math.min(1, images.length), sum(Array.from(images, (index) => this.preferred[index]))));
    this.high = this.classes.map(({images}) => images.length);
    this.lost = this.classes.map((tree) => this.lostAfter(tree));
    this.spared = this.lost.map((lost) => { let most = 0; return lost.map((m) => { most = Math.max(most, m); return most; }); });
  }

  minKept() { return this.floor; }

  maxKept() { return this.n - sum(this.excluded); }

  // The images that a class has lost after its first m merges, for m = 0, 1, ...
  lostAfter({images, children}) {
    const leaves = images.length, merges = children.length / 2;
    const stays = new Int32Array(leaves + merges), kept = new Int32Array(leaves + merges);
    const size = new Int32Array(leaves + merges), label = new Int32Array(leaves + merges);
    images.forEach((index, leaf) => {
      stays[leaf] = this.preferred[index];
      kept[leaf] = size[leaf] = 1;
      label[leaf] = this.codes ? this.codes[index] : 0;
    });
    const lost = new Int32Array(merges + 1);
    for (let k = 0; k < merges; k++) {
      const left = children[2 * k], right = children[2 * k + 1], node = leaves + k;
      size[node] = size[left] + size[right];
      stays[node] = stays[left] + stays[right];
      label[node] = label[left] === label[right] ? label[left] : MIXED;
      kept[node] = label[node] === MIXED ? size[node] : Math.max(1, stays[node]);
      lost[k + 1] = lost[k] + kept[left] + kept[right] - kept[node];
    }
    return lost;
  }

  cut(nKept) { return this.assemble(this.mergesAt(nKept)); }

  // How many merges each class does.
  mergesAt(nKept) {
    if (this.quota === "global") return this.mergesByHeight(nKept);
    const quota = allocate(nKept, this.sizes, this.low, this.high);
    return this.classes.map((_, c) =>
      (quota[c] < this.high[c] ? firstAtLeast(this.spared[c], this.high[c] - quota[c]) : 0));
  }

  // The heights of each class's last merge, null where there is none.
  heightsOf(merges) { return this.classes.map(({heights}, c) => (merges[c] ? heights[merges[c] - 1] : null)); }

  mergesByHeight(nKept) {
    if (!this.byHeight) {
      const heights = [], owner = [], loss = [];
      this.classes.forEach((tree, c) => tree.heights.forEach((height, k) => {
        heights.push(height);
        owner.push(c);
        loss.push(this.spared[c][k + 1] - this.spared[c][k]);
      }));
      const order = Int32Array.from(heights, (_, k) => k).sort((a, b) => heights[a] - heights[b] || a - b);
      let total = 0;
      const lost = Int32Array.from(order, (k) => { total += loss[k]; return total; });
      this.byHeight = {owner: Int32Array.from(order, (k) => owner[k]), lost};
    }
    const toLose = this.maxKept() - nKept;
    const count = toLose ? firstAtLeast(this.byHeight.lost, toLose) + 1 : 0;
    const merges = this.classes.map(() => 0);
    for (const c of this.byHeight.owner.subarray(0, count)) merges[c] += 1;
    return merges;
  }

  assemble(nMerges) {
    const representative = new Int32Array(this.n).fill(-1), group = new Int32Array(this.n).fill(-1);
    const distance = new Float32Array(this.n).fill(NaN);
    // For each image the largest distance within its group, which complete linkage tells: where its last merge was.
    const spread = this.bounded ? new Float32Array(this.n) : null;
    let first = 0;
    this.classes.forEach(({images, children, heights, nodes, eventLeaf, eventNode, eventDistance}, c) => {
      const leaves = images.length, merges = nMerges[c];
      const top = new Int32Array(leaves + merges), root = new Int32Array(leaves + merges);
      for (let node = 0; node < leaves + merges; node++) {
        top[node] = node < leaves ? node : nodes[node - leaves];
        root[node] = node;
      }
      for (let k = merges - 1; k >= 0; k--) {
        for (const child of [children[2 * k], children[2 * k + 1]]) {
          top[child] = top[leaves + k];
          root[child] = root[leaves + k];
        }
      }
      images.forEach((index, leaf) => {
        representative[index] = images[top[leaf]];
        group[index] = first + root[leaf];
        distance[index] = 0;
        if (spread && root[leaf] >= leaves) spread[index] = heights[root[leaf] - leaves];
      });
      const events = firstAtLeast(eventNode, merges);
      for (let k = 0; k < events; k++) distance[images[eventLeaf[k]]] = eventDistance[k];
      first += leaves + merges;
    });
    const numbered = byFirst(group);
    const influential = this.codes ? mixedGroups(numbered, this.codes) : null;
    for (let index = 0; index < this.n; index++) {
      if ((this.preferred[index] || (influential && influential[index])) && numbered[index] >= 0) {
        representative[index] = index;
        distance[index] = 0;
      }
    }
    return {group: numbered, representative, distance, influential, spread, heights: this.heightsOf(nMerges)};
  }
}

// Which images are in a group with images of another label.
function mixedGroups(group, codes) {
  const label = new Map(), mixed = new Set();
  group.forEach((g, index) => {
    if (g < 0) return;
    if (!label.has(g)) label.set(g, codes[index]);
    else if (label.get(g) !== codes[index]) mixed.add(g);
  });
  return Uint8Array.from(group, (g) => (mixed.has(g) ? 1 : 0));
}

class Ranking {
  constructor(facts, arrays) {
    this.order = arrays["recut-order"];
    this.codes = arrays["recut-codes"];
    this.sizes = [...arrays["recut-sizes"]];
    this.preferred = arrays["recut-preferred"];
    this.excluded = arrays["recut-excluded"];
    this.n = this.order.length;
    const counted = (chosen) => {
      const counts = this.sizes.map(() => 0);
      this.codes.forEach((code, index) => { counts[code] += chosen[index]; });
      return counts;
    };
    const gone = counted(this.excluded), wanted = counted(this.preferred);
    this.high = this.sizes.map((size, c) => size - gone[c]);
    this.low = this.high.map((most, c) => Math.max(Math.min(1, most), wanted[c]));
  }

  minKept() { return sum(this.low); }

  maxKept() { return sum(this.high); }

  cut(nKept) {
    const seats = allocate(nKept, this.sizes, this.low, this.high);
    const order = [...this.order].filter((index) => !this.excluded[index]);
    const representative = new Int32Array(this.n).fill(-1);
    const distance = new Float32Array(this.n).fill(NaN);
    for (const turn of [1, 0]) {
      for (const index of order) {
        if (this.preferred[index] === turn && seats[this.codes[index]] > 0) {
          seats[this.codes[index]] -= 1;
          representative[index] = index;
          distance[index] = 0;
        }
      }
    }
    return {group: byFirst(representative), representative, distance, influential: null, spread: null, heights: null};
  }
}

// An order of outliers, and the trees of the other images: `toolkit/selection/outlier_forest.py`.
class OutlierForest {
  constructor(facts, arrays) {
    this.forest = new Forest(facts, arrays);
    this.n = this.forest.n;
    this.share = facts.outlier_share;
    this.floor = facts.outlier_floor;
    this.order = arrays["recut-outlier_order"];
    this.codes = arrays["recut-balance_codes"];
    this.low = [...arrays["recut-balance_low"]];
    this.excluded = new Uint8Array(this.n);
    for (const index of arrays["recut-excluded"]) this.excluded[index] = 1;
    this.available = this.low.map(() => 0);
    this.codes.forEach((code, index) => { this.available[code] += 1 - this.excluded[index]; });
    const mayGo = new Uint8Array(this.n);
    const apart = this.low.map(() => 0);
    for (const index of this.order) {
      mayGo[index] = 1;
      apart[this.codes[index]] += this.forest.excluded[index];
    }
    // How many images that may go stand alone after the first m merges of each class.
    this.singles = this.forest.classes.map(({images, children}, c) => {
      let alone = apart[c];
      for (const index of images) alone += mayGo[index];
      const singles = new Int32Array(children.length / 2 + 1);
      singles[0] = alone;
      children.forEach((child, k) => {
        if (child < images.length) alone -= mayGo[images[child]];
        singles[(k >> 1) + 1] = alone;
      });
      return singles;
    });
  }

  minKept() { return this.floor; }

  maxKept() { return this.n - sum(this.excluded); }

  mergesAt(nKept) { return this.split(nKept).merges; }

  heightsOf(merges) { return this.forest.heightsOf(merges); }

  // How many merges each class does, and how many of its images go as outliers.
  split(nKept) {
    const kept = allocate(nKept, this.forest.sizes, this.low, this.available);
    const gone = this.available.map((count, c) => count - kept[c]);
    const outliers = allocate(fractionOf(this.share, sum(gone)), gone, gone.map(() => 0), gone);
    const merges = [], counts = [];
    gone.forEach((wanted, c) => {
      const lost = this.forest.lost[c], singles = this.singles[c];
      for (let most = outliers[c]; ; most++) {
        const m = lost.findIndex((count, k) => count + Math.min(most, singles[k]) >= wanted);
        if (m >= 0) {
          merges.push(m);
          counts.push(wanted - lost[m]);
          return;
        }
      }
    });
    return {merges, counts};
  }

  cut(nKept) {
    const {merges, counts} = this.split(nKept);
    const {group, representative, distance, spread, heights} = this.forest.assemble(merges);
    const size = new Map();
    for (const g of group) size.set(g, (size.get(g) || 0) + 1);
    const outlier = new Uint8Array(this.n);
    for (const index of this.order) {
      const c = this.codes[index];
      if (counts[c] > 0 && (group[index] < 0 || size.get(group[index]) === 1)) {
        outlier[index] = 1;
        counts[c] -= 1;
      }
    }
    for (let index = 0; index < this.n; index++) {
      if (outlier[index]) {
        group[index] = representative[index] = -1;
        distance[index] = NaN;
      } else if (group[index] < 0 && !this.excluded[index]) {
        group[index] = 2 * this.n + index;
        representative[index] = index;
        distance[index] = 0;
      }
    }
    return {group: byFirst(group), representative, distance, influential: null, outlier, spread, heights};
  }
}

const PROFILE_STEPS = 100;

// The height of the last merge of all classes at evenly spaced budgets: [images kept, height], most kept first.
function profileOf(recut) {
  const most = recut.maxKept(), least = recut.minKept(), profile = [];
  if (!recut.mergesAt || most === least) return profile;
  for (let k = 0; k <= PROFILE_STEPS; k++) {
    const nKept = Math.round(most - ((most - least) * k) / PROFILE_STEPS);
    profile.push([nKept, Math.max(0, ...recut.heightsOf(recut.mergesAt(nKept)).map((height) => height ?? 0))]);
  }
  return profile;
}

const RECUTS = {merge_forest: Forest, outlier_forest: OutlierForest, ranking: Ranking};

// What the page shows of a selection: who stays, why, and in whose favour, as saved or cut anew.
class Selection {
  constructor(facts, arrays) {
    this.facts = facts;
    this.n = facts.images;
    this.codes = arrays.codes || new Uint8Array(this.n);
    this.classes = facts.classes || ["all"];
    this.ids = arrays.ids || null;
    this.scores = arrays.scores || null;
    this.objects = facts.several ? new Objects(facts, arrays) : null;
    this.saved = {
      status: arrays.status, group: Int32Array.from(arrays.group),
      representative: Int32Array.from(arrays.representative), distance: arrays.distance, heights: null,
      spread: arrays.spread || null,
    };
    this.staying = facts.statuses.map((name) => facts.staying.includes(name));
    this.recut = facts.recut ? new RECUTS[facts.recut.kind](facts.recut, arrays) : null;
    const {classes} = this.recut?.forest || this.recut || {};
    // Trees can be of other classes than the labels': of those that a model predicts.
    this.treesAreOfClasses = Boolean(classes) && !this.objects && classes.length === this.classes.length
      && classes.every(({images}, c) => images.every((index) => this.codes[index] === c));
    this.asSaved();
  }

  stays(index) { return this.staying[this.status[index]]; }

  idOf(index) { return this.ids ? this.ids[index] : String(index); }

  // What an image is called after: its class, or its labels with how often it has each.
  className(index) { return this.labelsOf(index).map(([title]) => title).join(" + "); }

  // The labels of an image in words, each with its class.
  labelsOf(index) {
    if (!this.facts.classes) return [];
    if (!this.objects) return [[this.classes[this.codes[index]], this.codes[index]]];
    return this.objects.of(index).map(([c, count]) => [`${this.classes[c]}${count > 1 ? ` x${count}` : ""}`, c]);
  }

  isOf(index, c) { return this.objects ? this.objects.has(index, c) : this.codes[index] === c; }

  asSaved() {
    this.cutAt = null;
    Object.assign(this, this.saved);
    this.derive();
    if (this.recut && this.heights === null) {
      // Where the saved selection is a cut of its trees, say how far these merged.
      const nKept = this.nKept;
      if (nKept >= this.recut.minKept() && nKept <= this.recut.maxKept()) {
        const again = this.made(nKept);
        if (again.status.every((code, index) => code === this.status[index])) {
          this.saved.heights = again.heights;
          if (again.spread && again.group.every((g, index) => g === this.group[index])) this.saved.spread = again.spread;
        }
      }
      this.heights = this.saved.heights;
      this.spread = this.saved.spread;
    }
  }

  cut(nKept) {
    this.cutAt = nKept;
    Object.assign(this, this.made(nKept));
    this.derive();
  }

  made(nKept) {
    const {statuses, cutStatus, edits} = this.facts;
    const code = Object.fromEntries(statuses.map((name, k) => [name, k]));
    const cut = this.recut.cut(nKept);
    const status = new Uint8Array(this.n);
    for (let index = 0; index < this.n; index++) {
      status[index] = cut.representative[index] === index ? code.kept : cutStatus;
      if (cut.influential && cut.influential[index]) status[index] = code.influential;
      if (cut.outlier && cut.outlier[index]) status[index] = code.outlier;
      if (this.recut.excluded[index]) status[index] = code.excluded;
    }
    const {group, representative, distance, spread, heights} = cut;
    const gone = new Set();
    for (const [index, stays] of edits) {
      status[index] = stays ? code.kept : code.excluded;
      representative[index] = stays ? index : -1;
      distance[index] = stays ? 0 : NaN;
      if (!stays) gone.add(index);
    }
    if (gone.size) {
      representative.forEach((of, index) => {
        if (gone.has(of)) {
          representative[index] = -1;
          distance[index] = NaN;
        }
      });
    }
    return {status, group, representative, distance, spread, heights};
  }

  // The members of all groups, and counts.
  derive() {
    const nGroups = this.group.reduce((most, g) => Math.max(most, g + 1), 0);
    this.start = new Int32Array(nGroups + 1);
    for (const g of this.group) if (g >= 0) this.start[g + 1] += 1;
    for (let g = 0; g < nGroups; g++) this.start[g + 1] += this.start[g];
    const next = this.start.slice();
    this.inGroup = new Int32Array(this.start[nGroups]);
    this.group.forEach((g, index) => { if (g >= 0) this.inGroup[next[g]++] = index; });
    this.nKept = 0;
    this.byStatus = new Int32Array(this.facts.statuses.length);
    for (const code of this.status) {
      this.byStatus[code] += 1;
      if (this.staying[code]) this.nKept += 1;
    }
  }

  // The members of a group, ascending.
  members(g) { return g < 0 ? new Int32Array(0) : this.inGroup.subarray(this.start[g], this.start[g + 1]); }

  // The largest distance within a group in words, where it is known.
  apart(g) {
    const largest = this.spread && g >= 0 ? this.spread[this.members(g)[0]] : NaN;
    return Number.isNaN(largest) ? "" : `, at most ${short(largest)} apart`;
  }

  // Groups of two or more, the largest first, ties by first image.
  groups() {
    const sizeOf = (g) => this.start[g + 1] - this.start[g];
    const several = [];
    for (let g = 0; g + 1 < this.start.length; g++) if (sizeOf(g) > 1) several.push(g);
    return several.sort((a, b) => sizeOf(b) - sizeOf(a) || this.inGroup[this.start[a]] - this.inGroup[this.start[b]]);
  }

  kept() {
    const kept = [];
    for (let index = 0; index < this.n; index++) if (this.stays(index)) kept.push(index);
    return kept;
  }

  keptText() { return this.kept().map((index) => `${this.idOf(index)}\n`).join(""); }

  // For each class, or each set of labels, its images by status.
  table() {
    const nRows = this.objects ? this.codes.reduce((most, c) => Math.max(most, c + 1), 0) : this.classes.length;
    const rows = Array.from({length: nRows}, () => new Int32Array(this.facts.statuses.length));
    this.status.forEach((code, index) => { rows[this.codes[index]][code] += 1; });
    return rows;
  }

  // What to call the rows of the table.
  rowTitles() {
    if (!this.objects) return this.classes;
    const titles = [];
    this.codes.forEach((c, index) => {
      titles[c] ??= this.objects.of(index).map(([label]) => this.classes[label]).join(" + ");
    });
    return titles;
  }
}

// Which labels each image has, and how often; images without any have the class `nothing`.
class Objects {
  constructor(facts, arrays) {
    this.image = arrays["object-image"];
    this.label = arrays["object-label"];
    this.count = arrays["object-count"];
    this.nothing = facts.several.nothing;
    this.start = new Int32Array(facts.images + 1);
    for (const index of this.image) this.start[index + 1] += 1;
    for (let index = 0; index < facts.images; index++) this.start[index + 1] += this.start[index];
    this.totals = facts.classes.map(() => 0);
    this.label.forEach((c, k) => { this.totals[c] += this.count[k]; });
  }

  // The classes of an image, each with how often it has it.
  of(index) {
    const found = [];
    for (let k = this.start[index]; k < this.start[index + 1]; k++) found.push([this.label[k], this.count[k]]);
    return found.length ? found : [[this.nothing, 1]];
  }

  has(index, c) {
    for (let k = this.start[index]; k < this.start[index + 1]; k++) if (this.label[k] === c) return true;
    return c === this.nothing && this.start[index] === this.start[index + 1];
  }

  // The class that an image has most of, or the one of its classes that there is least of.
  most(index) { return this.of(index).reduce((best, found) => (found[1] > best[1] ? found : best))[0]; }

  rarest(index) {
    return this.of(index).reduce((best, found) => (this.totals[found[0]] < this.totals[best[0]] ? found : best))[0];
  }
}
