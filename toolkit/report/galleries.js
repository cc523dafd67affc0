// Pictures of single images, of pairs and of groups, a page of them at a time.

const PER_PAGE = 60, GROUPS_PER_PAGE = 12, PAIRS_PER_PAGE = 24, GROUP_SHOWN = 12;
// Classes that a group's heading names.
const MOST_RANGES = 6;

// A new element; `parts` are texts, which are never read as HTML, and elements.
function make(tag, attributes = {}, ...parts) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") node.addEventListener("click", value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...parts.filter((part) => part !== null && part !== undefined && part !== ""));
  return node;
}

const whole = (value) => value.toLocaleString("en-US");
const percent = (part, all) => `${((100 * part) / Math.max(1, all)).toFixed(2)} %`;

function short(value) {
  if (value === null || Number.isNaN(value)) return "";
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size >= 1000 ? whole(Math.round(value)) : size < 1e-3 ? value.toExponential(1) : value.toPrecision(size < 0.01 ? 2 : 3);
}

const STYLES = {
  kept: [0, 0.85], influential: [3, 1.25], redundant: [1, 1.15], outlier: [2, 1.5], random: [5, 1.15], excluded: [4, 1.3],
  boundary: [6, 1.25],
};
// A status that this page does not know is a ring.
const styleOf = (status) => STYLES[status] || [7, 1.2];

const PATHS = [
  "M8 1.5a6.5 6.5 0 1 0 0 13a6.5 6.5 0 1 0 0-13z", "M2.5 2.5h11v11h-11z", "M8 1L15 14H1z", "M8 .5L15.500 8L8 15.500L.5 8z",
  "M3.500 1L8 5.500L12.500 1L15 3.500L10.500 8L15 12.500L12.500 15L8 10.500L3.500 15L1 12.500L5.500 8L1 3.500z",
  "M6 1h4v5h5v4h-5v5H6v-5H1V6h5z", "M8 15L1 2H15z", "M8 1.500a6.500 6.500 0 1 0 0 13a6.500 6.500 0 1 0 0-13zM8 4.500a3.500 3.500 0 1 1 0 7a3.500 3.500 0 1 1 0-7z",
];

function symbol(status) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg"), path = document.createElementNS(space, "path");
  svg.setAttribute("viewBox", "0 0 16 16");
  svg.setAttribute("aria-hidden", "true");
  path.setAttribute("d", PATHS[styleOf(status)[0]]);
  path.setAttribute("style", `fill: ${colorOf(status)}`);
  svg.append(path);
  return svg;
}

const colorOf = (status) => `var(--s-${status in STYLES ? status : "other"})`;

// The galleries: `view` is the page's state, `choose` shows an image in full.
class Galleries {
  constructor(view, thumbnails, choose) {
    this.view = view;
    this.thumbnails = thumbnails;
    this.choose = choose;
    this.page = 0;
    this.kinds = this.allKinds();
    this.kind = this.kinds[0];
    this.buildTabs();
    element("previous-page").addEventListener("click", () => this.turn(this.page - 1));
    element("next-page").addEventListener("click", () => this.turn(this.page + 1));
    element("page").addEventListener("change", (event) => this.turn(Math.round(event.target.value) - 1));
  }

  allKinds() {
    const {selection, found} = this.view;
    const statusOf = (index) => selection.facts.statuses[selection.status[index]];
    const withStatus = (...names) => this.shownImages((index) => names.includes(statusOf(index)));
    const kinds = [
      {
        id: "groups", title: "Groups", perPage: GROUPS_PER_PAGE, items: () => this.groups(false),
        make: (g) => this.groupCard(g),
        hint: "The largest groups of alike images. The framed image stays for the others.",
        empty: "No group has two images.",
      },
      {
        id: "gone", title: "Removed", perPage: PER_PAGE,
        items: () => this.shownImages((index) => !selection.stays(index)), make: (index) => this.thumb(index),
        hint: "Images that go, by index.", empty: "No image goes.",
      },
      {
        id: "outliers", title: "Outliers", perPage: PER_PAGE, items: () => this.mostOutlying(withStatus("outlier")),
        make: (index) => this.thumb(index),
        hint: `Images that go because they are unlike the others${selection.scores ? ", the most outlying first" : ""}.`,
        empty: "No image goes as an outlier.",
      },
      {
        id: "influential", title: "Influential", perPage: PAIRS_PER_PAGE, items: () => this.influential(),
        make: (item) => (Array.isArray(item) ? this.pairCard(item) : this.groupCard(item)),
        hint: selection.objects
          ? "Alike images with different classes in them, which stay: an object is there or not, or a label is missing or wrong. Bold: what not all of them have."
          : "Alike images of different classes, which stay: where classes meet, or a label is wrong.",
        empty: selection.objects ? "No group has images with different classes in them." : "No group has images of several classes.",
      },
    ];
    if (selection.saved.status.includes(selection.facts.statuses.indexOf("boundary"))) {
      kinds.push({
        id: "boundary", title: "Boundary", perPage: PER_PAGE, items: () => withStatus("boundary"),
        make: (index) => this.thumb(index), empty: "At this cut no paths were walked.",
        hint: "Images that stay because the model changes its mind between them and the image that would stand for them.",
      });
    }
    if (found.isolated) {
      kinds.push({
        id: "isolated", title: "Isolated", perPage: PAIRS_PER_PAGE, items: () => this.isolated(),
        make: (item) => this.pairCard(item), hint: "Images least like any other, each with the one nearest to it.",
        empty: "No image to show.",
      });
    }
    kinds.push({
      id: "all", title: "Images", perPage: PER_PAGE, items: () => this.shownImages(() => true),
      make: (index) => this.thumb(index), hint: "All images, as filtered above.", empty: "No image to show.",
    });
    return kinds;
  }

  buildTabs() {
    const tabs = this.kinds.map((kind) => make("button", {
      type: "button", role: "tab", id: `tab-${kind.id}`, "aria-controls": "panel", onclick: () => this.open(kind),
    }, kind.title, " ", make("small")));
    element("tabs").append(...tabs);
    element("tabs").addEventListener("keydown", (event) => {
      const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
      if (!step) return;
      event.preventDefault();
      const next = this.kinds[(this.kinds.indexOf(this.kind) + step + this.kinds.length) % this.kinds.length];
      this.open(next);
      element(`tab-${next.id}`).focus();
    });
  }

  open(kind) {
    this.kind = kind;
    this.page = 0;
    this.show();
  }

  turn(page) {
    this.page = page;
    this.show();
    element("galleries").scrollIntoView({block: "start"});
  }

  // Read the images, pairs or groups anew and show a page of them.
  show() {
    for (const kind of this.kinds) {
      const tab = element(`tab-${kind.id}`);
      tab.setAttribute("aria-selected", String(kind === this.kind));
      tab.tabIndex = kind === this.kind ? 0 : -1;
      kind.found = kind.items();
      tab.querySelector("small").textContent = whole(kind.found.length);
    }
    const {perPage, found, hint, empty} = this.kind;
    const nPages = Math.max(1, Math.ceil(found.length / perPage));
    this.page = Math.max(0, Math.min(nPages - 1, this.page || 0));
    element("panel").setAttribute("aria-labelledby", `tab-${this.kind.id}`);
    element("panel-hint").textContent = found.length ? hint : empty;
    const few = found.slice(this.page * perPage, (this.page + 1) * perPage);
    const single = this.kind.perPage === PER_PAGE;
    element("grid").className = single ? "thumbs" : "groups";
    element("grid").replaceChildren(...few.map((item) => this.kind.make(item)));
    element("pages").hidden = nPages === 1;
    element("n-pages").textContent = whole(nPages);
    element("page").value = this.page + 1;
    element("page").max = nPages;
    element("previous-page").disabled = this.page === 0;
    element("next-page").disabled = this.page === nPages - 1;
    this.mark();
  }

  // Mark the image that is shown in full.
  mark() {
    for (const node of document.querySelectorAll(".thumb")) {
      node.setAttribute("aria-current", String(Number(node.dataset.index) === this.view.chosen));
    }
  }

  // The images with a thumbnail that the filter leaves and `wanted` takes, by index.
  shownImages(wanted) {
    return this.view.inOrder.filter((index) => this.view.passes(index) && wanted(index));
  }

  mostOutlying(images) {
    const {scores} = this.view.selection;
    return scores ? images.sort((a, b) => scores[b] - scores[a] || a - b) : images;
  }

  groups(mixed) {
    const {selection, classFilter} = this.view, {codes} = selection;
    return selection.groups().filter((g) => {
      const members = selection.members(g);
      const first = codes[members[0]];
      return (classFilter < 0 || members.some((index) => selection.isOf(index, classFilter)))
        && (!mixed || members.some((index) => codes[index] !== first));
    });
  }

  influential() {
    const {selection, found} = this.view;
    const influential = selection.facts.statuses.indexOf("influential");
    const are = (index) => selection.status[index] === influential;
    const pairs = [];
    for (let k = 0; found.pairs && 2 * k < found.pairs.length; k++) {
      const a = found.pairs[2 * k], b = found.pairs[2 * k + 1];
      const together = are(a) && are(b) && selection.group[a] === selection.group[b];
      if (together && (this.view.passes(a) || this.view.passes(b))) pairs.push([a, b, found["pairs-distance"][k]]);
    }
    const mixed = selection.facts.classes ? this.groups(true) : [];
    return [...pairs, ...mixed.filter((g) => selection.members(g).some(are))];
  }

  isolated() {
    const {found} = this.view;
    return [...found.isolated].map((index, k) => [index, found["isolated-nearest"][k], found["isolated-distance"][k]])
      .filter(([index]) => this.view.passes(index));
  }

  // A button with an image, which shows it in full.
  thumb(index, {frame = false, caption = null, common = null} = {}) {
    const {selection} = this.view;
    const status = selection.facts.statuses[selection.status[index]];
    const canvas = make("canvas", {width: 8, height: 8});
    const text = caption ? [caption] : this.captionOf(index, common);
    const words = [`image ${selection.idOf(index)}`, selection.className(index), status].filter(Boolean).join(", ");
    this.thumbnails.draw(canvas, index);
    return make(
      "button",
      {
        type: "button", class: `thumb${selection.stays(index) ? "" : " gone"}${frame ? " frame" : ""}`,
        "data-index": index, "aria-label": words, title: words, "aria-current": String(index === this.view.chosen),
        onclick: () => this.choose(index),
      },
      canvas,
      make("span", {class: "mark"}, symbol(status), make("span", {}, ...text)),
    );
  }

  // The labels of an image, those first and in bold that are not `common`.
  captionOf(index, common) {
    const {selection} = this.view, labels = selection.labelsOf(index);
    if (!labels.length) return [`#${index}`];
    const own = ([, c]) => Boolean(common && selection.objects && !common.has(c));
    const ordered = [...labels.filter(own), ...labels.filter((label) => !own(label))];
    return ordered.flatMap((label, k) => [k ? " + " : "", own(label) ? make("b", {}, label[0]) : label[0]]);
  }

  // The classes that all of some images have.
  common(members) {
    const [first, ...others] = members, {selection} = this.view;
    return new Set(selection.labelsOf(first).map(([, c]) => c).filter((c) => others.every((index) => selection.isOf(index, c))));
  }

  // The images of a group: those that stay first, then the closest to them.
  ordered(g) {
    const {selection} = this.view;
    const far = (index) => (selection.stays(index) ? -1 : Number.isNaN(selection.distance[index]) ? Infinity : selection.distance[index]);
    return [...selection.members(g)].sort((a, b) => {
      const x = far(a), y = far(b);
      return x === y ? a - b : x - y;
    });
  }

  groupThumbs(g, most) {
    const {selection} = this.view, members = this.ordered(g);
    const mixed = members.some((index) => selection.codes[index] !== selection.codes[members[0]]);
    const common = mixed ? this.common(members) : null;
    return members.slice(0, most).map((index) => this.thumb(index, {
      frame: selection.stays(index), common,
      caption: mixed ? null : selection.stays(index) ? "stays" : short(selection.distance[index]),
    }));
  }

  groupCard(g) {
    const {selection} = this.view, members = selection.members(g);
    const labels = selection.objects ? this.ranges(members)
      : selection.facts.classes ? [...new Set([...members].map((index) => selection.className(index)))] : [];
    const farthest = members.reduce((most, index) => Math.max(most, selection.distance[index] || 0), 0);
    const staying = members.reduce((count, index) => count + (selection.stays(index) ? 1 : 0), 0);
    const card = make("div", {class: "group"}, make(
      "h3", {}, `${whole(members.length)} images`, labels.length ? ` ${selection.objects ? "with" : "of"} ${labels.join(", ")} ` : " ",
      make("small", {}, `${whole(staying)} ${staying === 1 ? "stays" : "stay"}${selection.apart(g) || (farthest ? `, farthest at ${short(farthest)}` : "")}`),
    ));
    const row = make("div", {class: "thumbs"}, ...this.groupThumbs(g, GROUP_SHOWN));
    if (members.length > GROUP_SHOWN) {
      row.append(make("button", {
        type: "button", class: "more", onclick: () => this.choose(this.ordered(g)[0]),
      }, `all ${whole(members.length)}`));
    }
    card.append(row);
    return card;
  }

  // How often images have each of their classes, such as "car x3-5" or "sign x0-1".
  ranges(members) {
    const {selection} = this.view, found = new Map();
    for (const index of members) {
      for (const [c, count] of selection.objects.of(index)) {
        const of = found.get(c) || {least: count, most: count, images: 0};
        found.set(c, {least: Math.min(of.least, count), most: Math.max(of.most, count), images: of.images + 1});
      }
    }
    const texts = [...found.entries()].sort(([c], [d]) => c - d).map(([c, {least, most, images}]) => {
      const from = images < members.length ? 0 : least;
      return `${selection.classes[c]}${from === most ? (most > 1 ? ` x${most}` : "") : ` x${from}–${most}`}`;
    });
    return texts.length > MOST_RANGES ? [...texts.slice(0, MOST_RANGES), `${texts.length - MOST_RANGES} more`] : texts;
  }

  pairCard([a, b, distance]) {
    const common = this.common([a, b]);
    return make(
      "div", {class: "pair"}, make("p", {}, `distance ${short(distance)}`),
      make("div", {class: "thumbs"}, this.thumb(a, {common}), this.thumb(b, {common})),
    );
  }
}
