"""The report of all of CIFAR-10: how long it takes to write, and how quick its page is beside one that Plotly makes.

    TOOLKIT_DATA=... python benchmarks/report.py --root ROOT_OF_CIFAR10

ROOT holds `cifar-10-batches-py`. The vectors are the features of a ResNet-32 in TOOLKIT_DATA. The peer is a 3-D scatter
plot of the same points by Plotly, written as one file too; it holds no images, no search and no slider. Both are opened
in Chromium without a graphics card, from a file, several times; medians are given.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from common import cifar10, peak_mib, versions, write_results

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
TURN_S = 4.0

OPEN_PEER = """() => new Promise((resolve) => {
    const wait = () => {
        const plot = document.querySelector(".js-plotly-plot");
        if (!plot || !plot._fullLayout || !plot._fullLayout.scene || !plot._fullLayout.scene._scene) {
            setTimeout(wait, 5);
            return;
        }
        const gl = plot._fullLayout.scene._scene.glplot.gl;
        requestAnimationFrame(() => requestAnimationFrame(() => {
            gl.readPixels(0, 0, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(4));
            resolve(performance.now());
        }));
    };
    wait();
})"""
TURN_PEER = """async (seconds) => {
    const plot = document.querySelector(".js-plotly-plot"), gl = plot._fullLayout.scene._scene.glplot.gl;
    const start = performance.now();
    let frames = 0, now = start;
    while (now - start < 1000 * seconds) {
        const angle = (now - start) / 1000;
        await Plotly.relayout(plot, {"scene.camera.eye": {x: 1.8 * Math.cos(angle), y: 1.8 * Math.sin(angle), z: 0.6}});
        await new Promise(requestAnimationFrame);
        gl.readPixels(0, 0, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(4));
        frames += 1;
        now = performance.now();
    }
    return (1000 * frames) / (now - start);
}"""
OPEN_OURS = """() => new Promise((resolve) => {
    const wait = () => {
        const [mark] = performance.getEntriesByName("first-cloud");
        if (mark) resolve(mark.startTime); else setTimeout(wait, 5);
    };
    wait();
})"""
TURN_OURS = """async (seconds) => {
    const cloud = report.cloudOf(), start = performance.now();
    let frames = 0, now = start;
    while (now - start < 1000 * seconds) {
        cloud.yaw = (now - start) / 1000;
        cloud.redraw();
        await new Promise(requestAnimationFrame);
        frames += 1;
        now = performance.now();
    }
    return (1000 * frames) / (now - start);
}"""
CUT_OURS = """() => {
    const {selection} = report.view, times = [];
    for (let k = 0; k < 15; k++) {
        const start = performance.now();
        selection.cut(44000 - 1000 * k);
        times.push(performance.now() - start);
    }
    return times.sort((a, b) => a - b)[7];
}"""
SEARCH_OURS = """async () => {
    const start = performance.now();
    document.getElementById("search").value = "31415";
    document.getElementById("find").requestSubmit();
    while (!document.querySelector("#detail canvas[data-drawn='31415']")) {
        await new Promise((resolve) => { setTimeout(resolve, 2); });
    }
    return performance.now() - start;
}"""


def write_ours(root: str, path: Path) -> dict[str, Any]:
    """Write the report; seconds in all and for the thumbnails."""
    from toolkit import SemanticSelector
    from toolkit.report import writer
    from toolkit.report.thumbnails import Sheets, make_sheets

    stored = np.load(Path(os.environ["TOOLKIT_DATA"]) / "features" / "resnet32_cifar10_train.npz")
    vectors = stored["features"].astype(np.float32)
    dataset = cifar10(root, train=True)
    selection = SemanticSelector(vectors, 0.9, progress=False).select(dataset, labels=stored["labels"])
    thumbnails = []

    def timed(*args: Any, **more: Any) -> Sheets:
        start = time.perf_counter()
        sheets = make_sheets(*args, **more)
        thumbnails.append(time.perf_counter() - start)
        return sheets

    before = peak_mib()
    start = time.perf_counter()
    with mock.patch.object(writer, "make_sheets", timed):
        writer.write_report(selection, dataset, path, vectors=vectors, class_names=CLASSES, progress=False)
    return {
        "images": len(selection),
        "write_s": time.perf_counter() - start,
        "thumbnails_s": thumbnails[0],
        "file_mb": path.stat().st_size / 1e6,
        "peak_mib_before": before,
        "peak_mib": peak_mib(),
    }


def write_peer(path: Path) -> dict[str, Any]:
    """Write a scatter plot of the same points, a trace for those that stay and one for those that go."""
    import plotly.graph_objects as go

    from toolkit import SemanticSelector
    from toolkit.representations.reduction import pca

    stored = np.load(Path(os.environ["TOOLKIT_DATA"]) / "features" / "resnet32_cifar10_train.npz")
    vectors = stored["features"].astype(np.float32)
    selection = SemanticSelector(vectors, 0.9, progress=False).select(labels=stored["labels"])
    start = time.perf_counter()
    points = pca(vectors, 3).vectors
    traces = []
    for name, indices, symbol in (("kept", selection.kept, "circle"), ("redundant", selection.removed, "square")):
        x, y, z = points[indices].T
        marker = {"size": 2, "symbol": symbol}
        traces.append(go.Scatter3d(x=x, y=y, z=z, mode="markers", marker=marker, name=name, text=indices.astype(str)))
    go.Figure(traces).write_html(path, include_plotlyjs=True)
    return {"write_s": time.perf_counter() - start, "file_mb": path.stat().st_size / 1e6}


def measured(browser: Any, path: Path, opened: str, actions: dict[str, tuple[str, Any]]) -> dict[str, float]:
    """Milliseconds from the start of navigation to the first drawing, and what the actions return."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(path.as_uri(), wait_until="commit")
    found = {"first_drawn_ms": page.evaluate(opened)}
    page.wait_for_load_state("load")
    found["loaded_ms"] = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
    for name, (script, argument) in actions.items():
        found[name] = page.evaluate(script, argument)
    page.close()
    return found


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(statistics.median(run[name] for run in runs), 1) for name in runs[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", required=True)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "report.json")
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        ours, peer = Path(folder) / "report.html", Path(folder) / "plotly.html"
        written = {"toolkit": write_ours(options.root, ours), "plotly": write_peer(peer)}
        flags = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
        if os.geteuid() == 0:
            flags.append("--no-sandbox")
        browser = playwright.chromium.launch(executable_path=program, args=flags)
        found: dict[str, list[dict[str, float]]] = {"toolkit": [], "plotly": []}
        for _ in range(options.runs):
            actions = {
                "frames_per_s": (TURN_OURS, TURN_S),
                "search_to_picture_ms": (SEARCH_OURS, None),
                "cut_ms": (CUT_OURS, None),
            }
            found["toolkit"].append(measured(browser, ours, OPEN_OURS, actions))
            found["plotly"].append(measured(browser, peer, OPEN_PEER, {"frames_per_s": (TURN_PEER, TURN_S)}))
        results = {name: {**written[name], **medians(runs)} for name, runs in found.items()}
        about = {"chromium": browser.version, **versions("plotly", "pillow", "playwright")}
        browser.close()
    write_results(options.output, {"browser": about, "runs": options.runs, **results})
    for name in sorted({key for result in results.values() for key in result}):
        print(f"{name:<22}" + "".join(f"{result.get(name, float('nan')):>14.1f}" for result in results.values()))


if __name__ == "__main__":
    main()
