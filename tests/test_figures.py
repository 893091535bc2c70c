"""The pictures of README and guides show the numbers of the committed results."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def figures():
    spec = importlib.util.spec_from_file_location("figures", ROOT / "benchmarks" / "figures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_gains_are_those_of_the_study(figures):
    """Its README has them to two decimals, in its tables' column "− sgd"."""
    text = (figures.STUDY / "README.md").read_text()
    for problem in figures.PROBLEMS:
        table = text.split(f"\n## {problem}\n")[1].split("\n## ")[0]
        for method, point in zip(figures.METHODS, figures.points(problem), strict=True):
            cells = re.search(rf"^\| {method.study} \|(.*)$", table, re.MULTILINE)[1].split("|")
            assert point.gain == pytest.approx(float(cells[5].split()[0]), abs=0.0051)
            assert 0 < point.error < 1


def test_prices_are_those_of_the_bench(figures):
    prices = [round(point.price, 2) for point in figures.points("mlp-clean-90")]
    rows = {row["optimizer"]: row for row in json.loads(figures.STEP_TIMES.read_text())}
    assert prices == [1.03, 1.10, 1.27, 1.88]
    assert prices == [round(rows[method.bench]["time_ratio"], 2) for method in figures.METHODS]


def test_the_committed_picture_has_a_marker_for_every_gain(figures):
    text = figures.file("accuracy_and_cost").read_text()
    assert len(text) < 100 * 1024
    panels = re.split(r'<g id="axes_\d+">', text)[1 : 1 + len(figures.PROBLEMS)]
    for problem, panel in zip(figures.PROBLEMS, panels, strict=True):
        ticks = re.split(r"matplotlib\.axis_\d+", panel)[2]
        zero, five = map(float, re.findall(r'd="M \S+ (\S+)', ticks)[:2])
        # Markers are drawn after the caps of their error bars.
        markers = re.findall(r'<use \S+ \S+ y="(\S+)"', panel)[-len(figures.METHODS) :]
        gains = [5 * (float(y) - zero) / (five - zero) for y in markers]
        expected = [point.gain for point in figures.points(problem)]
        assert gains == pytest.approx(expected, abs=0.01)


def test_the_picture_of_weights_and_channels_has_a_marker_for_every_network(figures):
    text = figures.file("weights_and_channels").read_text()
    rows = json.loads(figures.PAYING.read_text())
    drawn = {(r["optimizer"], r["removed"], r["sparsity"]) for r in rows}
    dense = sum(removed == "dense" for _, removed, _ in drawn)  # stand in both panels
    colors = "|".join(color for color, _ in figures.OPTIMIZERS.values())
    panels = re.split(r'<g id="axes_\d+">', text)[1:]
    lines = [re.split(r'<g id="legend', panel)[0] for panel in panels]
    markers = sum(len(re.findall(rf"<use [^>]*fill: (?:{colors})", line)) for line in lines)
    assert markers == 3 * (len(drawn) + dense)  # each with the caps of its error bar


@pytest.mark.parametrize("name", ["accuracy_and_cost", "weights_and_channels"])
def test_the_picture_has_no_background_and_a_twin_for_dark_pages(name, figures):
    light, dark = figures.file(name).read_text(), figures.file(f"{name}_dark").read_text()
    assert dark == figures.in_dark(light)
    assert "#ffffff" not in light + dark
    assert figures.INK in light
    assert figures.INK not in dark
