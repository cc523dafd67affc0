// The page's state, and what its controls do.

const MEMBERS_STEP = 36;
const facts = JSON.parse(element("facts").textContent);

const MOST_IN_LEGEND = 60, MOST_BOX_CLASSES = 12, MOST_COMBINATIONS = 20;

// A CSS colour as the canvas stores it, 0xBBGGRR.
const probe = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
function stored(color) {
  probe.fillStyle = color;
  probe.fillRect(0, 0, 1, 1);
  const [r, g, b] = probe.getImageData(0, 0, 1, 1).data;
  return (b << 16) | (g << 8) | r;
}
const themed = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

const view = {
  selection: null, found: {}, shown: null, inOrder: null, chosen: -1, classFilter: -1,
  statusShown: facts.statuses.map(() => true), colorBy: "status", members: MEMBERS_STEP,
  passes(index) {
    return this.statusShown[this.selection.status[index]]
      && (this.classFilter < 0 || this.selection.isOf(index, this.classFilter));
  },
};
let cloud = null, thumbnails = null, galleries = null, timeline = null;

function paintCloud() {
  if (!cloud) return;
  const {selection} = view;
  const colors = facts.statuses.map((status) => stored(themed(`--s-${status in STYLES ? status : "other"}`)));
  const ofClass = view.colorBy === "status" ? null : facts.colors.map(stored);
  const classOf = {
    class: (index) => selection.codes[index], most: (index) => selection.objects.most(index),
    rarest: (index) => selection.objects.rarest(index),
  }[view.colorBy];
  view.shown.forEach((index, point) => {
    const code = selection.status[index];
    const [shape, weight] = styleOf(facts.statuses[code]);
    cloud.color[point] = ofClass ? ofClass[classOf(index)] : colors[code];
    cloud.shape[point] = shape;
    cloud.weight[point] = weight;
    cloud.visible[point] = view.passes(index) ? 1 : 0;
    const of = selection.representative[index];
    cloud.lineTo[point] = of >= 0 && of !== index ? thumbnails.place[of] : -1;
  });
  cloud.lineColor = colors[facts.statuses.indexOf("redundant")];
  cloud.paper = stored(themed("--paper"));
  cloud.ink = themed("--ink");
  const members = view.chosen >= 0 ? selection.members(selection.group[view.chosen]) : [];
  cloud.chosen = view.chosen >= 0 && thumbnails.place[view.chosen] >= 0
    ? [view.chosen, ...[...members].filter((index) => index !== view.chosen)].map((index) => thumbnails.place[index])
      .filter((point) => point >= 0) : [];
  cloud.redraw();
}

function showCounts() {
  const {selection} = view, gone = selection.n - selection.nKept;
  const farthest = selection.distance.reduce((most, d) => (d > most ? d : most), 0);
  const merged = selection.heights ? Math.max(0, ...selection.heights.map((height) => height ?? 0)) : 0;
  const text = `${whole(gone)} of ${whole(selection.n)} images removed (${percent(gone, selection.n)})`;
  element("lead").replaceChildren(
    make("b", {}, text), `, ${whole(selection.nKept)} kept.`,
    merged ? ` Groups are merged up to ${short(merged)}.` : "",
    farthest ? ` The farthest image is ${short(farthest)} from its representative.` : "",
  );
  element("removed").setAttribute("aria-valuetext", text);
  facts.statuses.forEach((status, code) => {
    const chip = element(`status-${code}`);
    chip.hidden = !selection.byStatus[code] && !selection.saved.status.includes(code);
    chip.querySelector("span").textContent = whole(selection.byStatus[code]);
  });
  showProfile();
  showTable();
  showObjects();
  timeline?.show();
}

// For each class the images that have it, and its boxes, all and kept, at this cut.
function showObjects() {
  const {selection} = view, {objects} = selection;
  element("objects").hidden = !objects;
  if (!objects) return;
  const {counted, nothing} = facts.several, rows = facts.classes.map(() => [0, 0, 0, 0]);
  const add = (row, index, count) => {
    const stays = selection.stays(index) ? 1 : 0;
    row[0] += 1;
    row[1] += stays;
    row[2] += count;
    row[3] += stays * count;
  };
  objects.image.forEach((index, k) => add(rows[objects.label[k]], index, objects.count[k]));
  const total = [selection.n, selection.nKept, sum(rows.map((row) => row[2])), sum(rows.map((row) => row[3]))];
  if (nothing >= 0) {
    for (let index = 0; index < selection.n; index++) if (objects.has(index, nothing)) add(rows[nothing], index, 0);
  }
  const share = (kept, all) => {
    const value = (100 * kept) / Math.max(1, all);
    return make("td", {class: "share", style: `--p: ${value.toFixed(1)}%`}, value.toFixed(1));
  };
  const cells = ([images, imagesKept, boxes, boxesKept], hasBoxes = true) => [
    make("td", {}, whole(images)), make("td", {}, whole(imagesKept)), share(imagesKept, images),
    ...(!counted ? [] : hasBoxes ? [make("td", {}, whole(boxes)), make("td", {}, whole(boxesKept)), share(boxesKept, boxes)]
      : [make("td"), make("td"), make("td")]),
  ];
  const heads = ["class", "images", "kept", "kept %", ...(counted ? ["boxes", "kept", "kept %"] : [])];
  element("objects-title").textContent = `Images${counted ? " and boxes" : ""} by class`;
  element("object-table").replaceChildren(
    make("thead", {}, make("tr", {}, ...heads.map((head) => make("th", {scope: "col"}, head)))),
    make("tbody", {}, ...rows.map((row, c) => make(
      "tr", {}, make("th", {scope: "row", title: facts.classes[c]}, facts.classes[c]), ...cells(row, c !== nothing),
    ))),
    make("tfoot", {}, make("tr", {}, make("th", {scope: "row"}, "total"), ...cells(total))),
  );
}

function showTable() {
  const {selection} = view, all = selection.table(), titles = selection.rowTitles();
  // Of sets of labels, which can be many, the most frequent ones.
  const order = all.map((_, c) => c);
  if (selection.objects) order.sort((a, b) => sum(all[b]) - sum(all[a]) || a - b);
  const rows = selection.objects ? order.slice(0, MOST_COMBINATIONS) : order;
  const used = facts.statuses.map((_, code) => code).filter((code) => code && selection.byStatus[code]);
  const heights = selection.treesAreOfClasses ? selection.heights : null;
  const heads = [
    selection.objects ? "classes" : facts.classes ? "class" : "", "images", "kept", "removed", "removed %",
    ...used.map((code) => facts.statuses[code]), ...(heights ? ["merged up to"] : []),
  ];
  const cells = (row) => {
    const kept = row.reduce((total, count, code) => total + (selection.staying[code] ? count : 0), 0), all = sum(row);
    const share = (100 * (all - kept)) / Math.max(1, all);
    return [
      make("td", {}, whole(all)), make("td", {}, whole(kept)), make("td", {}, whole(all - kept)),
      make("td", {class: "share", style: `--p: ${share.toFixed(1)}%`}, share.toFixed(1)),
      ...used.map((code) => make("td", {}, whole(row[code]))),
    ];
  };
  const total = facts.statuses.map((_, code) => sum(all.map((row) => row[code])));
  if (selection.objects) {
    element("classes").hidden = all.length < 2;
    element("classes-title").textContent = "Kept and removed by combination of classes";
    element("combinations").hidden = all.length <= MOST_COMBINATIONS;
    element("combinations").textContent = `The ${MOST_COMBINATIONS} most frequent of ${whole(all.length)} combinations.`;
  }
  element("table").replaceChildren(
    make("thead", {}, make("tr", {}, ...heads.map((head) => make("th", {scope: "col"}, head)))),
    make("tbody", {}, ...rows.map((c) => make(
      "tr", {}, make("th", {scope: "row", title: titles[c]}, titles[c]), ...cells(all[c]),
      heights ? make("td", {}, short(heights[c])) : "",
    ))),
    rows.length > 1
      ? make("tfoot", {}, make("tr", {}, make("th", {scope: "row"}, "total"), ...cells(total), heights ? make("td") : "")) : "",
  );
}

// How far apart the images are that are merged last, along the slider, with a line at this cut.
let profile = [];
function showProfile() {
  const {selection} = view, picture = element("profile");
  const highest = Math.max(...profile.map(([, height]) => height));
  picture.hidden = !profile.length || !highest;
  if (picture.hidden) return;
  const most = profile[0][0], width = most - profile[profile.length - 1][0];
  const shape = (name, attributes) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    return node;
  };
  const points = profile.map(([nKept, height]) => `${(most - nKept) / width},${1 - height / highest}`);
  const at = (most - (selection.cutAt ?? selection.nKept)) / width;
  picture.setAttribute("viewBox", "0 0 1 1");
  picture.setAttribute("preserveAspectRatio", "none");
  picture.replaceChildren(
    shape("path", {d: `M0,1L${points.join("L")}L1,1Z`}),
    at >= 0 && at <= 1 ? shape("line", {x1: at, x2: at, y1: 0, y2: 1}) : "",
  );
}

function refresh() {
  showCounts();
  paintCloud();
  galleries?.show();
  if (view.chosen >= 0) showDetail();
}

// A slider that is dragged cuts once a frame, and the galleries follow once it rests.
let wantedCut = null, resting = 0;
function cutSoon(nKept) {
  const {selection} = view;
  nKept = Math.max(selection.recut.minKept(), Math.min(selection.recut.maxKept(), nKept));
  element("removed").value = selection.n - nKept;
  element("kept-number").value = nKept;
  if (wantedCut === null) {
    requestAnimationFrame(() => {
      selection.cut(wantedCut);
      wantedCut = null;
      showCounts();
      paintCloud();
      clearTimeout(resting);
      resting = setTimeout(() => {
        galleries.show();
        if (view.chosen >= 0) showDetail();
      }, 120);
    });
  }
  wantedCut = nKept;
}

function why(index) {
  const {selection} = view, status = facts.statuses[selection.status[index]];
  const of = selection.representative[index];
  const others = selection.members(selection.group[index]).reduce(
    (count, member) => count + (member !== index && selection.representative[member] === index ? 1 : 0), 0,
  );
  const words = {
    kept: others ? `Stays, and stands for ${whole(others)} other image${others === 1 ? "" : "s"}.` : "Stays.",
    influential: `Stays: it is alike to images ${selection.objects ? "with other classes in them" : "of another class"}, so its group is kept whole.`,
    boundary: "Stays: the model changes its mind between it and the image that would stand for it.",
    redundant: "Goes: it is like the image on the right, which stays.",
    outlier: "Goes: it is unlike the other images.",
    random: "Goes: drawn at random.",
    excluded: "Goes: a person took it out.",
  }[status] || `${selection.stays(index) ? "Stays" : "Goes"}: ${status}.`;
  return status === "redundant" && of < 0 ? "Goes: the image that stood for it was taken out." : words;
}

function bigPicture(index, caption) {
  const canvas = make("canvas", {
    width: 8, height: 8, role: "img", "aria-label": `image ${view.selection.idOf(index)}`, "data-index": index,
  });
  thumbnails.draw(canvas, index);
  return make("figure", {class: "big"}, canvas, make("figcaption", {}, ...caption));
}

// The labels of an image, each with the colour of its boxes.
function labelLine(index) {
  const {selection} = view;
  if (!thumbnails.boxes) return selection.className(index);
  return selection.labelsOf(index).flatMap(([title, c], k) => [
    k ? " + " : "", c === facts.several?.nothing ? "" : make("i", {class: "box", style: `border-color: ${facts.colors[c]}`}), title,
  ]);
}

function showDetail() {
  const {selection, chosen} = view, detail = element("detail");
  if (chosen < 0) {
    detail.replaceChildren(make("p", {class: "hint"}, "Click a point or a picture to see the image here, why it stays or goes, and its group."));
    return;
  }
  const status = facts.statuses[selection.status[chosen]];
  const of = selection.representative[chosen], hasOther = of >= 0 && of !== chosen;
  const g = selection.group[chosen], members = selection.members(g);
  const line = (term, value) => (value.length ? [make("dt", {}, term), make("dd", {}, ...[value].flat())] : []);
  const place = thumbnails.place[chosen];
  const missingNote = place < 0 ? "not in this page's sample" : thumbnails.has(chosen) ? "" : "could not be read";
  const nodes = [
    make(
      "h2", {}, symbol(status), make("span", {}, status), make("button", {
        type: "button", class: "close", "aria-label": "Close", onclick: () => detail.classList.remove("open"),
      }, "✕"),
    ),
    make("div", {class: "sides"}, bigPicture(chosen, ["this image"]), hasOther ? bigPicture(of, [
      "stays for it ", make("button", {type: "button", onclick: () => choose(of)}, `show #${of}`),
    ]) : ""),
    make("p", {class: "why"}, why(chosen)),
    make(
      "dl", {}, ...line("index", String(chosen)), ...line("id", selection.ids ? selection.idOf(chosen) : ""),
      ...line(selection.objects ? "classes" : "class", labelLine(chosen)),
      ...line("distance", hasOther ? short(selection.distance[chosen]) : ""),
      ...line("outlier score", selection.scores ? short(selection.scores[chosen]) : ""),
      ...line("group", members.length > 1 ? `${whole(members.length)} images${selection.apart(g)}` : g >= 0 ? "on its own" : "none"),
      ...line("picture", missingNote),
    ),
    make(
      "div", {class: "bar"},
      make("button", {type: "button", disabled: chosen === 0, onclick: () => choose(chosen - 1)}, "‹ previous"),
      make("button", {type: "button", disabled: chosen === selection.n - 1, onclick: () => choose(chosen + 1)}, "next ›"),
      cloud && place >= 0 ? make("button", {type: "button", onclick: () => cloud.lookAt(place)}, "turn about it") : "",
    ),
  ];
  if (members.length > 1) {
    nodes.push(make("h3", {}, "Its group"), make("div", {class: "thumbs"}, ...galleries.groupThumbs(g, view.members)));
    if (members.length > view.members) {
      nodes.push(make("button", {
        type: "button", onclick: () => { view.members += 4 * MEMBERS_STEP; showDetail(); },
      }, `more (${whole(members.length - view.members)})`));
    }
  }
  detail.replaceChildren(...nodes);
}

function choose(index) {
  view.chosen = index;
  view.members = MEMBERS_STEP;
  showDetail();
  element("detail").classList.add("open");
  galleries.mark();
  paintCloud();
  timeline?.show();
}

const MOST_MATCHES = 30;

// Images by index (with or without #) or id first, then those whose id has the text in it.
function matchesOf(text) {
  const {selection} = view, found = [];
  if (selection.ids) {
    const exact = selection.ids.indexOf(text);
    if (exact >= 0) found.push(exact);
  }
  const number = /^#?(\d+)$/.exec(text);
  if (number && Number(number[1]) < selection.n && !found.includes(Number(number[1]))) found.push(Number(number[1]));
  if (selection.ids) {
    const low = text.toLowerCase();
    for (let index = 0; index < selection.n && found.length <= MOST_MATCHES; index++) {
      if (selection.ids[index].toLowerCase().includes(low) && !found.includes(index)) found.push(index);
    }
  }
  return found;
}

function find(event) {
  event.preventDefault();
  const text = element("search").value.trim();
  const found = text ? matchesOf(text) : [];
  const list = make("ul", {}, ...found.slice(0, MOST_MATCHES).map((index) => make("li", {}, make(
    "button", {type: "button", onclick: () => choose(index)},
    `#${index}${view.selection.ids ? ` ${view.selection.idOf(index)}` : ""}`,
  ))));
  element("matches").replaceChildren(
    found.length === 1 ? "" : !found.length ? (text ? `No image is called “${text}”.` : "")
      : found.length > MOST_MATCHES ? `The first ${MOST_MATCHES} that fit:` : `${found.length} fit:`,
    found.length > 1 ? list : "",
  );
  if (found.length) choose(found[0]);
}

function download() {
  const url = URL.createObjectURL(encodedText(view.selection.keptText()));
  const link = make("a", {href: url, download: "kept.txt"});
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

function showNotes() {
  const notes = [];
  const {images, shown, seed, sheets} = facts;
  if (shown < images) {
    notes.push(`Pictures and points are of a random sample of ${whole(shown)} of ${whole(images)} images (seed ${seed}); counts, cuts and kept.txt are of all.`);
  }
  if (sheets.unreadable) notes.push(`${whole(sheets.unreadable)} image${sheets.unreadable === 1 ? "" : "s"} could not be read and have no picture.`);
  if (!facts.projection) notes.push("No vectors were given, so there are no points in space and no isolated images.");
  if (facts.boxes && !facts.boxes.drawn) notes.push(`${whole(sum(facts.boxes.totals))} boxes are too many for a page to draw.`);
  if (facts.isolatedNote) notes.push(`Isolated images: ${facts.isolatedNote}`);
  element("notes").textContent = notes.join(" ");
  element("notes").hidden = !notes.length;
  element("no-cut").textContent = `The number of images cannot be changed here. ${facts.noRecut}`;
  element("no-cut").hidden = Boolean(facts.recut);
  element("cut-controls").hidden = !facts.recut;
  element("config").textContent = Object.entries(facts.config).map(([name, value]) => `${name}: ${JSON.stringify(value)}`)
    .join("\n");
  const quality = sheets.quality === null ? "lossless" : `WebP quality ${sheets.quality}`;
  element("about").textContent = `Pictures have up to ${sheets.side} pixels (${quality}).${facts.metric ? ` Distances of isolated images and of pairs are ${facts.metric}.` : ""}${facts.fingerprint ? ` Data set ${facts.fingerprint.slice(0, 16)}.` : ""} Written by dataset-pruning-toolkit ${facts.version}.`;
  if (facts.projection) {
    const {name, explained} = facts.projection;
    const axes = explained ? ` The axes hold ${explained.map((share) => `${(100 * share).toFixed(0)} %`).join(", ")} of the variance.` : "";
    element("cloud-hint").textContent = `${name} of the vectors.${axes} Drag to turn, shift-drag to move, click an image to see it; once clicked, the wheel zooms.`;
  }
}

function buildFilter() {
  const {selection} = view;
  element("statuses").append(...facts.statuses.map((status, code) => {
    const chip = make("button", {type: "button", class: "status", id: `status-${code}`, "aria-pressed": "true", onclick: () => {
      view.statusShown[code] = !view.statusShown[code];
      chip.setAttribute("aria-pressed", String(view.statusShown[code]));
      galleries.page = 0;
      refresh();
    }}, symbol(status), status, make("span"));
    return chip;
  }));
  element("class-field").hidden = element("color-field").hidden = !facts.classes;
  if (!facts.classes) return;
  element("class-filter").append(
    make("option", {value: -1}, "all"), ...selection.classes.map((name, c) => make("option", {value: c}, name)),
  );
  element("class-filter").addEventListener("change", (event) => {
    view.classFilter = Number(event.target.value);
    galleries.page = 0;
    refresh();
  });
  element("class-legend").append(...legend(selection.classes, facts.colors, MOST_IN_LEGEND));
  if (!selection.objects) return;
  element("color-by").replaceChildren(
    make("option", {value: "status"}, "status"),
    facts.several.counted ? make("option", {value: "most"}, "class with most boxes") : "",
    make("option", {value: "rarest"}, "rarest class in it"),
  );
}

// Names with their colours, the first of them; `box` for outlines.
function legend(names, colors, most, box = false) {
  const mark = (color) => make("i", box ? {class: "box", style: `border-color: ${color}`} : {style: `background: ${color}`});
  const shown = names.slice(0, most).map((name, c) => make("span", {title: name}, mark(colors[c]), make("b", {}, name)));
  return names.length > most ? [...shown, `and ${names.length - most} more`] : shown;
}

function buildBoxes() {
  if (!thumbnails.boxes) return;
  const {titles, colors, totals} = facts.boxes;
  // The classes with most boxes, in their order.
  const chosen = titles.map((_, c) => c).sort((a, b) => totals[b] - totals[a]).slice(0, MOST_BOX_CLASSES).sort((a, b) => a - b);
  const rest = titles.map((_, c) => c).filter((c) => !chosen.includes(c));
  const order = [...chosen, ...rest];
  element("boxes-field").hidden = element("box-legend").hidden = false;
  element("box-legend").append(...legend(order.map((c) => titles[c]), order.map((c) => colors[c]), MOST_BOX_CLASSES, true));
  element("boxes").addEventListener("change", (event) => {
    thumbnails.showBoxes = event.target.checked;
    thumbnails.redraw();
  });
}

function buildTimeline(arrays) {
  if (!facts.videos.length) return;
  timeline = new Timeline(view, facts.videos, arrays["video-frames"], arrays["video-lengths"], choose);
}

function buildCut() {
  const {selection} = view, {recut} = selection;
  if (!recut) return;
  const slider = element("removed"), number = element("kept-number");
  profile = profileOf(recut);
  element("slide").title = "The curve: how far apart the images are that are merged last.";
  slider.min = selection.n - recut.maxKept();
  slider.max = selection.n - recut.minKept();
  number.min = recut.minKept();
  number.max = recut.maxKept();
  const atSaved = () => {
    const kept = Math.max(recut.minKept(), Math.min(recut.maxKept(), selection.nKept));
    slider.value = selection.n - kept;
    number.value = kept;
  };
  atSaved();
  slider.addEventListener("input", () => cutSoon(selection.n - Number(slider.value)));
  // Half a per cent a key, one image with shift; Home and End are the browser's.
  slider.addEventListener("keydown", (event) => {
    const turns = {ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: 10, PageDown: -10}[event.key];
    if (!turns) return;
    event.preventDefault();
    const step = event.shiftKey ? Math.sign(turns) : turns * Math.max(1, Math.round(selection.n / 200));
    cutSoon(selection.n - Number(slider.value) - step);
  });
  number.addEventListener("change", () => {
    if (number.value !== "" && Number.isFinite(Number(number.value))) cutSoon(Math.round(Number(number.value)));
    else atSaved();
  });
  element("as-saved").addEventListener("click", () => {
    selection.asSaved();
    atSaved();
    refresh();
  });
}

function buildCloud(grid) {
  if (!grid) {
    element("cloud").hidden = true;
    return;
  }
  cloud = new Cloud(element("points"), grid);
  cloud.onfirst = () => {
    performance.mark("first-cloud");
    document.documentElement.dataset.cloud = "drawn";
  };
  cloud.onpick = (point) => choose(view.shown[point]);
  cloud.onhover = (point) => showTip(point);
  element("zoom-in").addEventListener("click", () => cloud.zoomBy(1.3));
  element("zoom-out").addEventListener("click", () => cloud.zoomBy(1 / 1.3));
  element("reset-view").addEventListener("click", () => cloud.reset());
  element("lines").addEventListener("change", (event) => {
    cloud.showLines = event.target.checked;
    cloud.redraw();
  });
  element("color-by").addEventListener("change", (event) => {
    view.colorBy = event.target.value;
    element("class-legend").hidden = view.colorBy === "status";
    paintCloud();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    paintCloud();
    timeline?.show();
  });
}

function showTip(point) {
  const tip = element("tip");
  tip.hidden = point < 0;
  if (point < 0 || tip.dataset.point === String(point)) return;
  tip.dataset.point = point;
  const {selection} = view, index = view.shown[point];
  const canvas = make("canvas", {width: 8, height: 8});
  thumbnails.draw(canvas, index);
  tip.replaceChildren(canvas, ...[`#${index}`, selection.className(index), facts.statuses[selection.status[index]]]
    .filter(Boolean).map((text) => make("div", {}, text)));
  const [left, top] = cloud.placeOf(point), stage = element("stage").getBoundingClientRect();
  tip.style.left = left > stage.width - 130 ? "" : `${left + 14}px`;
  tip.style.right = left > stage.width - 130 ? `${stage.width - left + 14}px` : "";
  tip.style.top = `${Math.max(0, Math.min(stage.height - 140, top - 30))}px`;
}

async function start() {
  const arrays = await readArrays();
  view.found = arrays;
  view.shown = Int32Array.from(arrays.shown);
  view.inOrder = [...view.shown].sort((a, b) => a - b);
  view.selection = new Selection(facts, arrays);
  thumbnails = new Thumbnails(facts, view.shown, arrays);
  const root = document.documentElement;
  root.classList.toggle("several", Boolean(view.selection.objects));
  if (facts.boxes) {
    root.classList.add("scenes");
    root.style.setProperty("--aspect", thumbnails.aspect());
  }
  showNotes();
  buildFilter();
  buildBoxes();
  buildTimeline(arrays);
  buildCut();
  buildCloud(arrays.points);
  showCounts();
  paintCloud();
  galleries = new Galleries(view, thumbnails, choose);
  element("download").addEventListener("click", download);
  element("find").addEventListener("submit", find);
  showDetail();
  galleries.show();
  root.dataset.ready = "yes";
}

// For the browser's console.
window.report = {view, facts, fractionOf, allocate, profileOf, cloudOf: () => cloud, thumbnailsOf: () => thumbnails};
start().catch((error) => {
  element("lead").textContent = `This page could not be drawn: ${error}`;
  document.documentElement.dataset.ready = "failed";
  throw error;
});
