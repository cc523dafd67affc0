// Which frames of each video stay: a line a video, dark where they do.

const MOST_VIDEOS = 30;

class Timeline {
  constructor(view, names, frames, lengths, choose) {
    this.view = view;
    this.choose = choose;
    let start = 0;
    const videos = names.map((name, k) => ({name, frames: frames.subarray(start, start += lengths[k])}));
    const shown = videos.map((_, k) => k).sort((a, b) => lengths[b] - lengths[a] || a - b).slice(0, MOST_VIDEOS).sort((a, b) => a - b);
    this.longest = Math.max(...lengths);
    this.lines = shown.map((k) => this.line(videos[k]));
    element("videos").append(...this.lines.map(({row}) => row));
    element("timeline").hidden = false;
    element("more-videos").hidden = videos.length <= MOST_VIDEOS;
    element("more-videos").textContent = `The ${MOST_VIDEOS} longest of ${whole(videos.length)} sequences.`;
    new ResizeObserver(() => this.show()).observe(element("videos"));
  }

  line({name, frames}) {
    const canvas = make("canvas", {role: "img"}), note = make("span");
    canvas.addEventListener("click", (event) => {
      const place = Math.floor((event.offsetX / canvas.clientWidth) * this.longest);
      if (place < frames.length) this.choose(frames[Math.max(0, place)]);
    });
    return {name, frames, canvas, note, row: make("div", {class: "video"}, make("span", {title: name}, name), canvas, note)};
  }

  show() {
    const {selection, chosen} = this.view;
    const dark = themed("--s-kept"), light = themed("--line"), ink = themed("--ink");
    for (const {name, frames, canvas, note} of this.lines) {
      const scale = window.devicePixelRatio || 1;
      const width = canvas.width = Math.max(1, Math.round(canvas.clientWidth * scale));
      const height = canvas.height = Math.round(22 * scale);
      const context = canvas.getContext("2d"), edge = (place) => Math.round((place / this.longest) * width);
      const kept = new Float32Array(width), all = new Float32Array(width);
      let nKept = 0, gap = 0, run = 0;
      frames.forEach((index, place) => {
        const stays = selection.stays(index) ? 1 : 0, from = edge(place), to = Math.max(from + 1, edge(place + 1));
        for (let x = from; x < to && x < width; x++) {
          kept[x] += stays;
          all[x] += 1;
        }
        nKept += stays;
        run = stays ? 0 : run + 1;
        gap = Math.max(gap, run);
      });
      // Where several frames share a column it is the darker the more of them stay, and never light if one does.
      for (let x = 0; x < width; x++) {
        if (!all[x]) continue;
        context.globalAlpha = 1;
        context.fillStyle = light;
        context.fillRect(x, 0, 1, height);
        if (!kept[x]) continue;
        context.globalAlpha = 0.55 + (0.45 * kept[x]) / all[x];
        context.fillStyle = dark;
        context.fillRect(x, 0, 1, height);
      }
      context.globalAlpha = 1;
      const at = chosen >= 0 ? frames.indexOf(chosen) : -1;
      if (at >= 0) {
        context.fillStyle = ink;
        context.fillRect(edge(at) - scale, 0, Math.max(edge(at + 1) - edge(at), 1) + 2 * scale, 3 * scale);
        context.fillRect(edge(at) - scale, height - 3 * scale, Math.max(edge(at + 1) - edge(at), 1) + 2 * scale, 3 * scale);
      }
      note.textContent = `${whole(nKept)} of ${whole(frames.length)}, gap ${whole(gap)}`;
      note.title = "frames kept, and how many in a row go at most";
      canvas.setAttribute("aria-label", `${name}: ${nKept} of ${frames.length} frames stay, at most ${gap} in a row go`);
    }
  }
}
