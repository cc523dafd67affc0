const choose = document.getElementById("choose");

/** Shows the part of the page for the chosen budget and network. */
function show() {
  const chosen = Object.fromEntries(new FormData(choose));
  for (const part of document.querySelectorAll("[data-budget]")) {
    const network = part.dataset.network;
    part.hidden = part.dataset.budget !== chosen.budget || (network !== undefined && network !== chosen.network);
  }
}

choose.hidden = false;
choose.addEventListener("change", show);
show();

for (const time of document.querySelectorAll(".time")) {
  time.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
    const picked = new Set([...time.querySelectorAll('button[aria-pressed="true"]')].map((b) => b.dataset.method));
    time.classList.toggle("picked", picked.size > 0);
    for (const series of time.querySelectorAll("svg .series[data-method]")) {
      series.classList.toggle("picked", picked.has(series.dataset.method));
    }
  });
}
