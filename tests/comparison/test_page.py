import re
from html.parser import HTMLParser

import pytest

from toolkit.comparison import Published, plot_comparison, summarise_runs, write_page
from toolkit.comparison.table import Grid, markdown_table, ticks


class Balanced(HTMLParser):
    """Checks that every element ends, and notes the attributes that load something."""

    EMPTY = ("meta", "link", "input", "br")

    def __init__(self):
        super().__init__()
        self.open, self.loads, self.texts = [], [], []

    def handle_starttag(self, tag, attrs):
        if tag not in self.EMPTY:
            self.open.append(tag)
        self.loads += [value for name, value in attrs if name in {"src", "href"}]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def parsed(text):
    parser = Balanced()
    parser.feed(text)
    assert parser.open == []
    return parser


@pytest.fixture
def both(rows):
    return summarise_runs([*rows, *({**row, "budget": "steps"} for row in rows if row["method"] != "full")])


def test_the_page_is_whole_and_loads_nothing(tmp_path, both):
    path = write_page(
        tmp_path / "page.html", both, title="Mine & <yours>", config={"model": "</pre><b>"}, device="a machine"
    )
    text = path.read_text()
    parser = parsed(text)
    assert parser.loads == ["data:,"]
    assert "http" not in re.sub(r"<pre>.*</pre>", "", text)
    assert "<title>Mine &amp; &lt;yours&gt;</title>" in text
    assert "&lt;/pre&gt;&lt;b&gt;" in text
    assert "ValueError: too &lt;few&gt;" in text
    for budget in ("epochs", "steps"):
        for network in ("last", "best"):
            assert f'<div data-budget="{budget}" data-network="{network}">' in text


def test_the_table_has_a_row_a_fraction_and_a_column_a_method(tmp_path, both):
    text = write_page(tmp_path / "page.html", both).read_text()
    first = text[text.index("<table>") : text.index("</table>")]
    heads = re.findall(r"<th>([^<]*)</th>", first)
    assert heads == [
        "kept",
        "random",
        "balanced",
        "mine",
        "fragile",
        "auto",
        "100 %, full set",
        "90 %",
        "50 %",
        "its own choice",
    ]
    assert "<b>95.20</b> ± 0.10" in first
    better = re.findall(r'<td class="better">.*?</td>', first)
    assert len(better) == 1
    assert "<b>92.00</b>" in better[0]
    assert "+5.00" in better[0]
    assert "42 % kept" in first


def test_what_a_paper_prints_stands_beside_what_was_measured(tmp_path, rows):
    published = Published("a paper", 0.96, {"mine": {0.9: 0.93, 0.5: 0.912}})
    text = write_page(tmp_path / "page.html", summarise_runs(rows), published=published).read_text()
    parsed(text)
    assert "printed: 91.20" in text
    assert "As printed: a paper." in text
    assert text.count("curve paper") == 2, "one for each network"
    assert "printed" not in write_page(tmp_path / "page.html", summarise_runs(rows)).read_text()


def test_a_score_far_below_random_is_told_at_the_edge(tmp_path, rows):
    worse = [{**row, "test_last": 0.2} if row["method"] == "fragile" and row["test_last"] else row for row in rows]
    text = write_page(tmp_path / "page.html", summarise_runs(worse)).read_text()
    assert re.search(r'<text class="away"[^>]*>20.00</text>', text)


def test_a_page_of_little_is_a_page(tmp_path, rows):
    for some in (rows[:1], rows[1:2], [row for row in rows if row["status"] == "failed"]):
        parsed(write_page(tmp_path / "page.html", summarise_runs(some)).read_text())
        assert plot_comparison(summarise_runs(some)).axes


def test_scores_that_are_no_shares_are_shown_as_they_are(rows):
    grid = Grid.of(summarise_runs([{**row, "test_last": 12.5, "test_best": 12.5} for row in rows]), "epochs")
    assert not grid.is_share
    assert grid.text(12.5) == "12.5"
    assert Grid.of(summarise_runs(rows), "epochs").text(-0.0123, signed=True) == "\N{MINUS SIGN}1.23"


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.91, 0.97), (3.0, 4000.0), (-2.0, 5.0)])
def test_ticks_are_few_round_and_inside(low, high):
    found = ticks(low, high)
    assert 2 <= len(found) <= 6
    assert all(low <= value <= high for value in found)
    assert ticks(1.0, 1.0) == [1.0]


def test_published_tables_are_the_papers():
    paper = Published.of("cifar100")
    assert (paper.full, paper.score("outliers", 0.5), paper.score("random", 1.0)) == (0.6886, 0.5841, 0.6886)
    assert all(len(scores) == 4 for scores in paper.methods.values())
    with pytest.raises(ValueError, match="`published` must be one of 'cifar10', 'cifar100', got 'mnist'"):
        Published.of("mnist")


def test_the_picture_has_a_drawing_a_method(both):
    figure = plot_comparison(both, title="Mine", published=Published("a paper", 0.96, {"mine": {0.9: 0.93}}))
    assert [axes.get_title() for axes in figure.axes] == ["random", "balanced", "mine", "fragile", "auto"]
    assert "As many steps" in figure.get_suptitle()
    assert "As many epochs" in plot_comparison(both, budget="epochs", title="Mine").get_suptitle()


def test_the_table_for_a_readme_has_a_row_a_method(rows):
    lines = markdown_table(Grid.of(summarise_runs(rows), "epochs")).splitlines()
    assert lines[0] == "| method | 90 % kept | 50 % kept | its own choice |"
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| full set: 95.20 ± 0.10 |")
    mine = next(line for line in lines if line.startswith("| mine |"))
    assert "92.00 ± 1.10 **(+5.00)**" in mine
    assert "96.00 ± 1.10 (+0.00)" in mine
    assert "failed" in next(line for line in lines if line.startswith("| fragile |"))
    assert "42 % kept" in next(line for line in lines if line.startswith("| auto |"))
