"""The files of a report: whole, self-contained, escaped, and without sections that have no data."""

import csv
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from report.folders import make_analysis, make_robustness, make_run, write, write_config

from zosam_jax import cli
from zosam_jax.commands.report import ReportConfig
from zosam_jax.report import figures, report
from zosam_jax.report.estimates import rank_correlation
from zosam_jax.report.runs import Plane

VOID = ("meta", "br", "wbr", "hr", "img", "input", "link")


class Reader(HTMLParser):
    """Checks that tags are closed in order, and keeps ids, headings, attributes and texts."""

    def __init__(self, path):
        super().__init__()
        self.open, self.tags, self.ids, self.attributes = [], [], [], []
        self.headings, self.texts = [], []
        self.feed(path.read_text())
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def make_runs(folder):
    """Two optimizers, three seeds: the flatter one is better; and one run without analysis."""
    for seed in range(3):
        for optimizer, sharpness in (("sgd", 4.0 + seed), ("sam", 2.0 - 0.1 * seed)):
            make_run(
                folder / f"{optimizer}-{seed}",
                (0.5, 0.95 - 0.02 * sharpness),
                optimizer=optimizer,
                seed=seed,
                analysis=make_analysis(sharpness, perturbs=optimizer == "sam"),
                robustness=make_robustness(0.9, 0.8 - 0.01 * sharpness),
            )
    make_run(folder / "plain", (1 / 3, 2 / 3), optimizer="sgd", seed=7)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A report of everything."""
    folder = tmp_path_factory.mktemp("full")
    make_runs(folder / "runs")
    return report([folder / "runs"], folder / "out", title="The one", target=0.8)


@pytest.fixture
def small(tmp_path):
    """One run."""
    return make_run(tmp_path / "runs" / "one", optimizer="sgd")


def test_a_full_report(full):
    page = Reader(full / "report.html")
    assert page.headings == [
        "Test accuracy",
        "Learning curves",
        "Convergence",
        "Cost",
        "Robustness to corruptions",
        "Sharpness",
        "Does flatter mean better?",
        "Gradient variance",
        "Loss surfaces",
    ]
    links = [value[1:] for name, value in page.attributes if name == "href" and len(value) < 40]
    assert set(links) <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    # Gains, curves, two of robustness, five measures against two outcomes, variance, two lines, and
    # the planes of two optimizers.
    assert page.tags.count("svg") == 1 + 1 + 2 + 5 * 2 + 1 + 2 + 2


def test_the_page_needs_nothing_but_itself(full):
    page = Reader(full / "report.html")
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    loading = [v for name, v in page.attributes if name in ("src", "href", "xlink:href", "data")]
    assert all(value.startswith("#") for value in loading)
    text = (full / "report.html").read_text()
    assert "://" not in text
    assert "@import" not in text
    assert set(re.findall(r"url\((.)", text)) <= {"#"}
    assert sorted(p.name for p in full.iterdir()) == [
        "report.html",
        "report.md",
        "runs.csv",
    ]


def test_references_inside_drawings_have_their_target(full):
    page = Reader(full / "report.html")
    text = (full / "report.html").read_text()
    used = set(re.findall(r'url\(#([^)]+)\)|xlink:href="#([^"]+)"', text))
    assert used
    assert {a or b for a, b in used} <= set(page.ids)


def test_colors_are_the_pages_own_and_the_same_in_all_figures(full):
    text = (full / "report.html").read_text()
    assert "#010203" not in text
    assert "#040506" not in text
    drawn = [re.findall(r"stroke: var\(--c(\d)\)", svg) for svg in text.split("<svg")[1:]]
    assert {number for numbers in drawn for number in numbers} == {"0", "1"}
    swatches = re.findall(r"--c(\d)\)\"></span>(\w+)", text)
    assert set(swatches) == {("0", "sgd"), ("1", "sam")}


def test_sections_without_data_are_left_out(tmp_path):
    make_run(tmp_path / "runs" / "one", optimizer="sgd", analysis={})
    report([tmp_path / "runs"], tmp_path / "out")
    headings = Reader(tmp_path / "out" / "report.html").headings
    assert headings == ["Test accuracy", "Learning curves", "Convergence", "Cost"]
    markdown = (tmp_path / "out" / "report.md").read_text()
    assert "## Cost" in markdown
    assert "Sharpness" not in markdown
    assert "Left out" not in markdown


def test_names_are_escaped(tmp_path):
    dataset = "hub:a/<b>&|*c*"
    make_run(tmp_path / "<i>&run", optimizer="sgd", dataset=dataset)
    write_config(tmp_path / "<s>killed")
    report([tmp_path], tmp_path / "out", title='<script>alert("1")</script>')
    page = Reader(tmp_path / "out" / "report.html")
    assert not {"b", "i", "s", "script"} - {"b"} & set(page.tags)
    assert '<script>alert("1")</script>' in page.texts
    assert dataset in page.texts
    assert "<s>killed" in page.texts
    markdown = (tmp_path / "out" / "report.md").read_text()
    assert r"hub:a/\<b\>&\|\*c\*" in markdown
    assert markdown.startswith(r"# \<script\>")


def test_markdown_tables_are_rectangular(full):
    blocks = (full / "report.md").read_text().split("\n\n")
    tables = [block.split("\n") for block in blocks if block.startswith("|")]
    assert len(tables) == 1 + 1 + 1 + 2 + 1 + 2 + 1
    caption = next(block for block in blocks if block.startswith("λ_max and trace"))
    assert "the Euclidean distance ρ = 0.1." in caption
    assert "length ρ = 0.2, a fraction of each filter's norm." in caption
    assert "within ρ = 0.5, in units of each weight's own size." in caption
    for lines in tables:
        assert len({line.count(" | ") for line in lines}) == 1
    assert tables[0][2] == (
        "| rigl 90% | 4 | 80.42 ± 9.31 | **91.20 ± 0.20 (n = 3)** (+6.20 ± 1.27) |"
    )


def test_the_csv_has_every_run_at_full_precision(full):
    with (full / "runs.csv").open(newline="") as file:
        rows = {row["run"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"plain", *(f"{o}-{s}" for o in ("sgd", "sam") for s in range(3))}
    assert float(rows["plain"]["test_accuracy"]) == 2 / 3
    assert rows["plain"]["lambda_max"] == ""
    assert rows["plain"]["seed"] == "7"
    assert float(rows["sam-2"]["rho"]) == 0.02
    assert float(rows["sam-2"]["lambda_max"]) == 10 * (2.0 - 0.1 * 2)
    assert (rows["sam-2"]["row"], rows["sam-2"]["column"]) == ("rigl 90%", "sam")
    assert "output" not in rows["plain"]
    assert float(rows["sgd-0"]["sparsity"]) == 0.9


def test_flatness_is_correlated_as_it_was_made(full):
    with (full / "runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    known = [row for row in rows if row["trace"]]
    sharpness, accuracy = ([float(row[n]) for row in known] for n in ("trace", "test_accuracy"))
    assert rank_correlation(sharpness, accuracy) == pytest.approx((-1.0, -1.0, 6))
    markdown = (full / "report.md").read_text()
    section = markdown.split("## Does flatter")[1].split("\n## ")[0]
    assert section.count("−1.00 (τ −1.00)") == 5
    assert section.count("+1.00 (τ +1.00)") == 5


def test_learning_curves_begin_where_their_second_half_does():
    line = figures.Line([1, 2, 3, 4], [10.0, 70.0, 80.0, 81.0], [0.0] * 4, figures.Style(1, False))
    whole, late = (
        figures.lines("curve", [line], "epoch", "accuracy", settled=settled).svg
        for settled in (False, True)
    )
    assert ">20<" in whole
    assert ">20<" not in late
    assert ">80" in late


def labels(svg):
    return [float(text) for text in re.findall(r"<text [^>]*>([\d.]+)</text>", svg)]


def test_labels_of_axes_are_those_that_were_drawn():
    style = figures.Style(1, False)
    xs, means = [1, 2, 3, 4], [0.0525, 0.0535, 0.0545, 0.0555]
    svg = figures.lines("curve", [figures.Line(xs, means, [0.0] * 4, style)], "x", "y").svg
    assert {0.0525, 0.053, 0.0535, 0.054, 0.0545, 0.055, 0.0555} <= set(labels(svg))


def test_labels_of_contours_differ():
    xs, losses = [-1.0, 0.0, 1.0], np.array([[2.2711, 2.2712, 2.2713]] * 3)
    levels = np.linspace(2.2711, 2.2713, 13)
    svg = figures.contours("sgd", Plane(xs, xs, losses, "random"), levels).svg
    scale = [label for label in labels(svg) if label > 2.0]
    assert len(scale) == len(set(scale)) == 5


def test_headings_break_between_options_alone(tmp_path):
    for rho in (0.1, 0.2):
        make_run(tmp_path / str(rho), optimizer="zo_sam", rho=rho)
    report([tmp_path], tmp_path / "out")
    text = (tmp_path / "out" / "report.html").read_text()
    assert ">zo_<wbr>sam, ρ&nbsp;=&nbsp;0.2</th>" in text


def test_rows_that_were_not_analysed_have_no_line_of_correlations(tmp_path):
    make_runs(tmp_path / "runs")
    make_run(tmp_path / "runs" / "other", optimizer="sgd", sparsity=0.5, train=None)
    report([tmp_path / "runs"], tmp_path / "out")
    section = (tmp_path / "out" / "report.md").read_text().split("## Does flatter")[1]
    assert section.split("\n## ")[0].count("| rigl 90% |") == 2
    assert "rigl 50%" not in section.split("\n## ")[0]


def test_what_is_left_out_is_listed(tmp_path):
    make_run(tmp_path / "runs" / "whole", optimizer="sgd")
    write_config(tmp_path / "runs" / "killed")
    failure = {"status": 2, "reason": "loss is NaN.", "options": {}}
    write(tmp_path / "runs" / ".sweep", "burst.failed.json", failure)
    report([tmp_path / "runs"], tmp_path / "out")
    page = Reader(tmp_path / "out" / "report.html")
    assert page.headings[-1] == "Left out"
    assert page.texts[page.texts.index("burst") + 1] == ": failed: loss is NaN."
    markdown = (tmp_path / "out" / "report.md").read_text()
    assert "\n1 run, gathered" in markdown
    assert "2 left out." in markdown
    assert "- killed: incomplete: it has no summary.json" in markdown


def test_what_training_leaves_is_reported(tmp_path):
    options = ["--model", "lenet-300-100", "--optimizer", "sam", "--epochs", "1", "--seed", "3"]
    output = tmp_path / "runs" / "trained"
    cli.main(["train", *options, "--train-images", "256", "--output", str(output)])
    report([tmp_path / "runs"], tmp_path / "out")
    with (tmp_path / "out" / "runs.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    summary = json.loads((output / "summary.json").read_text())
    assert (row["row"], row["column"], row["seed"]) == ("random 90%", "sam", "3")
    for name in ("test_accuracy", "training_cost", "seconds", "rho"):
        assert float(row[name]) == summary[name]
    assert float(row["final_sparsity"]) == summary["sparsity"]
    assert float(row["mean_ascent_gain"]) != 0


def test_a_report_can_be_made_again(small, tmp_path):
    pages = []
    for title in ("The one", "The other"):
        report([small], tmp_path / "out", title=title)
        pages.append((tmp_path / "out" / "report.html").read_text())
    assert pages[1] == pages[0].replace("The one", "The other")


def test_no_complete_run_is_refused(tmp_path):
    write_config(tmp_path / "runs" / "killed")
    with pytest.raises(ValueError, match=r"runs: no run is complete; killed: incomplete: .*"):
        report([tmp_path / "runs"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_is_no_place_for_a_report(small, tmp_path):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(FileExistsError, match=r"output='.*taken' is a file"):
        report([small], tmp_path / "taken")


def test_options_are_checked(tmp_path):
    with pytest.raises(ValueError, match=r"runs=\(\) must name"):
        ReportConfig(runs=())
    for target in (90.0, 0.0, math.nan):
        with pytest.raises(ValueError, match="target="):
            ReportConfig(runs=(tmp_path,), target=target)
    assert ReportConfig(runs=(tmp_path,), target=0.9).output is None


def test_titles_tell_what_was_trained(tmp_path):
    for i, (noise, sparsity) in enumerate([(0.2, 0.9), (0.2, 0.98)]):
        options = {"label_noise": noise, "sparse": "rigl", "sparsity": sparsity}
        make_run(tmp_path / "runs" / str(i), optimizer="sgd", **options)
    text = (report([tmp_path / "runs"], tmp_path / "out") / "report.md").read_text()
    title = text.splitlines()[0]
    assert title.endswith(" on digits with 20% of the labels random: rigl 90%, 98%")
