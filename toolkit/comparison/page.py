"""The page: tables in the papers' layout and curves, in one file that opens without a network."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import toolkit
from toolkit.comparison.charts import score_chart, time_chart
from toolkit.comparison.plan import ALWAYS, BUDGETS, FULL, RANDOM
from toolkit.comparison.published import Published
from toolkit.comparison.statistics import NETWORKS, Estimate, Summary, verdict
from toolkit.comparison.table import Grid, readable, typeset
from toolkit.files import write_whole
from toolkit.report.packing import plain

_NETWORK_NAMES = {"last": "of the last step", "best": "best in validation"}


def write_page(
    path: str | Path,
    summaries: Sequence[Summary],
    *,
    title: str = "Does pruning pay?",
    published: Published | None = None,
    score_name: str = "test/accuracy",
    config: Mapping[str, Any] | None = None,
    device: str = "",
) -> Path:
    """Write what a comparison found as one HTML file, which opens without a network.

    It has a table with a row a fraction and a column a method, as the papers have them, with the difference to a random
    subset of the same size; each method's score against the fraction kept, and all scores against seconds; what each
    method costs; and why runs failed.

    Args:
        path: The file.
        summaries: What the seeds of each method, fraction and budget say together.
        title: The page's title.
        published: A paper's figures, shown beside those measured.
        score_name: What was measured.
        config: The comparison's configuration, shown at the end.
        device: What it ran on.

    Returns:
        The path.

    Example:
        >>> import tempfile
        >>> from toolkit.comparison import summarise_runs
        >>> row = {"method": "full", "fraction": 1.0, "seed": 1, "budget": "epochs", "status": "done", "test_last": 0.9}
        >>> path = write_page(f"{tempfile.mkdtemp()}/page.html", summarise_runs([row]))
        >>> path.read_text()[:15]
        '<!DOCTYPE html>'
    """
    budgets = [budget for budget in BUDGETS if any(s.budget == budget and s.method != FULL for s in summaries)] or [
        BUDGETS[0]
    ]
    grids = {budget: Grid.of(summaries, budget) for budget in budgets}
    sections = []
    for budget, grid in grids.items():
        for network in NETWORKS:
            inside = _results(grid, summaries, budget, network, published)
            sections.append(f'<div data-budget="{budget}" data-network="{network}">{inside}</div>')
        sections.append(f'<div data-budget="{budget}">{_costs(grid)}</div>')
    text = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="generator" content="dataset-pruning-toolkit comparison">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f'<title>{html.escape(title)}</title>\n<link rel="icon" href="data:,">\n'
        f"<style>\n{_asset('page.css')}</style>\n</head>\n<body>\n"
        f"<header><h1>{html.escape(title)}</h1>{_lead(summaries, grids, score_name, device)}</header>\n"
        f"{_controls(budgets)}\n<main>{''.join(sections)}{_failures(summaries)}</main>\n"
        f"{_footer(published, config)}\n"
        f'<script>\n"use strict";\n(() => {{\n{_asset("page.js")}}})();\n</script>\n</body>\n</html>\n'
    )
    return write_whole(Path(path), [text])


def _asset(name: str) -> str:
    return resources.files("toolkit.comparison").joinpath(name).read_text(encoding="utf-8")


def _lead(summaries: Sequence[Summary], grids: Mapping[str, Grid], score_name: str, device: str) -> str:
    """What was compared, in two lines."""
    seeds = sorted({summary.score.n for summary in summaries if summary.score is not None})
    n_seeds = "no seed" if not seeds else str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    methods = len(next(iter(grids.values())).methods)
    unit = ", in percent" if next(iter(grids.values())).is_share else ""
    place = f" Measured on {html.escape(device)}." if device else ""
    return (
        f'<p class="lead">{methods} methods beside the full set; seeds: {n_seeds}. Scores are '
        f"<b>{html.escape(score_name)}</b>{unit}: mean ± standard deviation over seeds. Networks are chosen on "
        f"validation images, never on those that are tested on.{place}</p>"
    )


def _controls(budgets: Sequence[str]) -> str:
    def options(name: str, choices: Mapping[str, str]) -> str:
        return "".join(
            f'<label><input type="radio" name="{name}" value="{value}"{" checked" if number == 0 else ""}> '
            f"{html.escape(text)}</label>"
            for number, (value, text) in enumerate(choices.items())
        )

    shown = {budget: f"as many {budget}" for budget in budgets}
    return (
        '<form id="choose" hidden>'
        f"<fieldset><legend>Trained for</legend>{options('budget', shown)}</fieldset>"
        f"<fieldset><legend>Network</legend>{options('network', _NETWORK_NAMES)}</fieldset></form>"
    )


def _results(grid: Grid, summaries: Sequence[Summary], budget: str, network: str, published: Published | None) -> str:
    """Verdict, table and curves of one budget and network."""
    figures = []
    for method in grid.methods:
        drawing = score_chart(grid, method, network, published)
        if drawing:
            figures.append(f"<figure><figcaption>{html.escape(readable(method))}</figcaption>{drawing}</figure>")
    paper = '<span class="paper"><i></i>as printed</span>' if published is not None else ""
    key = (
        '<div class="key"><span><i></i>the method, with its 95 % interval</span>'
        '<span class="random"><i></i>random subsets, with theirs</span>'
        f'<span class="whole"><i></i>full set</span>{paper}</div>'
    )
    return (
        f"<h2>As many {budget} as on all images, network {_NETWORK_NAMES[network]}</h2>"
        f'<p class="verdict">{html.escape(verdict(summaries, budget, network))}</p>'
        f"{_table(grid, network, published)}"
        '<p class="hint">Below a score: its difference to a random subset of the same size, by seed, and the 95 % '
        "interval of that. Shaded where the interval leaves out 0.</p>"
        f"<h2>Score against the share kept</h2>{key}"
        f'<div class="charts">{"".join(figures)}</div>'
        f'<h2>Score against time</h2><div class="time">{time_chart(grid, network)}</div>'
    )


def _table(grid: Grid, network: str, published: Published | None) -> str:
    head = "".join(f"<th>{html.escape(readable(method))}</th>" for method in grid.methods)
    rows = []
    if grid.full is not None:
        score, _ = grid.full.scored(network)
        paper = "" if published is None else f'<small class="paper">printed: {grid.text(published.full)}</small>'
        inside = "no run is done" if score is None else f"{_score(grid, score)}{paper}"
        rows.append(f'<tr><th>100 %, full set</th><td class="whole" colspan="{len(grid.methods)}">{inside}</td></tr>')
    for fraction in grid.fractions:
        name = "its own choice" if fraction is None else f"{100 * fraction:g} %"
        cells = "".join(_cell(grid, grid.cells.get((method, fraction)), network, published) for method in grid.methods)
        rows.append(f"<tr><th>{name}</th>{cells}</tr>")
    body = f"<thead><tr><th>kept</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f'<div class="wide"><table>{body}</table></div>'


def _cell(grid: Grid, summary: Summary | None, network: str, published: Published | None) -> str:
    if summary is None:
        return '<td class="none"></td>'
    score, over = summary.scored(network)
    if score is None:
        why = html.escape(_short(summary.errors[0])) if summary.errors else ""
        return f'<td class="failed">failed: {why}</td>'
    parts = [_score(grid, score)]
    style = ""
    if over is not None and summary.method not in {RANDOM, FULL}:
        style = {1: "better", -1: "worse", 0: ""}[over.sign]
        between = "" if over.low is None or over.high is None else _between(grid, over.low, over.high)
        parts.append(f'<small><span class="gap">{grid.text(over.mean, signed=True)}</span>{between}</small>')
    if summary.fraction is None and summary.kept_fraction is not None:
        parts.append(f"<small>{100 * summary.kept_fraction:.4g} % kept</small>")
    if summary.n_failed:
        parts.append(f"<small>{summary.n_failed} failed</small>")
    printed = None if published is None else published.score(summary.method, summary.fraction)
    if printed is not None:
        parts.append(f'<small class="paper">printed: {grid.text(printed)}</small>')
    return f'<td class="{style}">{"".join(parts)}</td>' if style else f"<td>{''.join(parts)}</td>"


def _score(grid: Grid, score: Estimate) -> str:
    spread = "" if score.std is None else f" ± {grid.text(score.std)}"
    return f"<b>{grid.text(score.mean)}</b>{spread}"


def _between(grid: Grid, low: float, high: float) -> str:
    return f" [{grid.text(low, signed=True)}, {grid.text(high, signed=True)}]"


def _costs(grid: Grid) -> str:
    """What each method takes, and saves."""
    head = (
        "<th>method</th><th>kept</th><th>network to choose by</th><th>choosing</th><th>training</th>"
        "<th>saved, where the network exists</th><th>saved in all</th><th>energy</th>"
    )
    rows = []
    listed = [] if grid.full is None else [grid.full]
    listed += [
        grid.cells[method, fraction]
        for method in grid.methods
        for fraction in grid.fractions
        if (method, fraction) in grid.cells
    ]
    for summary in listed:
        if summary.seconds_training is None:
            continue
        kept = "" if summary.kept_fraction is None else f"{100 * summary.kept_fraction:.4g} %"
        cells = [
            _seconds(summary.seconds_baseline),
            _seconds(summary.seconds_choosing),
            _seconds(summary.seconds_training),
            "" if summary.method == FULL else _share(summary.saving),
            "" if summary.method == FULL else _share(summary.saving_net),
            "not told" if summary.joules is None else f"{summary.joules.mean / 1000:.3g} kJ",
        ]
        inside = "".join(f"<td>{cell}</td>" for cell in cells)
        rows.append(f"<tr><th>{html.escape(readable(summary.method))}</th><td>{kept}</td>{inside}</tr>")
    return (
        f'<h2>What it costs</h2><div class="wide" id="costs"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        '<p class="hint">Seconds are means over seeds, ± standard deviation; training without validation. Choosing '
        "counts the extraction of features each time, although it is done once for all fractions. Saved: the share of "
        "the full set's training time.</p>"
    )


def _seconds(seconds: Estimate | None) -> str:
    if seconds is None or seconds.mean == 0:
        return "none"
    spread = "" if seconds.std is None else f" ± {seconds.std:.2g}"
    return f"{seconds.mean:.3g}{spread} s" if seconds.mean < 1000 else f"{seconds.mean:,.0f} s"


def _share(share: Estimate | None) -> str:
    return "" if share is None else typeset(f"{100 * share.mean:.1f} %")


def _failures(summaries: Sequence[Summary]) -> str:
    rows = [
        f"<li><b>{html.escape(readable(s.method))}</b>{'' if s.fraction is None else f' at {100 * s.fraction:g} %'}, "
        f"as many {s.budget}: {html.escape(error)}</li>"
        for s in summaries
        for error in s.errors
    ]
    return f"<h2>What failed</h2><ul>{''.join(rows)}</ul>" if rows else ""


def _footer(published: Published | None, config: Mapping[str, Any] | None) -> str:
    source = "" if published is None else f"<p>As printed: {html.escape(published.source)}.</p>"
    told = ""
    if config is not None:
        text = json.dumps(plain(dict(config)), indent=1)
        told = f"<details><summary>Configuration</summary><pre>{html.escape(text)}</pre></details>"
    always = ", ".join(ALWAYS)
    return (
        f"{told}<footer>{source}<p>dataset-pruning-toolkit {toolkit.__version__}; always there: {always}.</p></footer>"
    )


def _short(text: str, most: int = 90) -> str:
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"
