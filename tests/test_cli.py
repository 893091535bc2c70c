"""The command line from the outside: its commands, help, versions and error sentences."""

import dataclasses
import io
import subprocess
import sys

import pytest
from rich.console import Console

import zosam_jax
from zosam_jax import cli
from zosam_jax.commands import options
from zosam_jax.training.config import TrainConfig

POSITIONAL = ("runs", "run", "images", "file", "containing")


def said(capsys):
    """What was printed, without tyro's boxes and line breaks."""
    captured = capsys.readouterr()
    return " ".join((captured.out + captured.err).replace("│", " ").split())


def status(*words):
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    return caught.value.code


@pytest.mark.parametrize(("words", "code"), [((), 2), (("--help",), 0), (("-h",), 0)])
def test_the_commands_are_listed_with_a_line_each(words, code, capsys):
    assert status(*words) == code
    lines = capsys.readouterr().out.splitlines()
    for name, text in cli.COMMANDS.items():
        assert [*name.split(), *text.split()] in [line.split() for line in lines]


def test_the_version(capsys):
    cli.main(["--version"])
    assert capsys.readouterr().out == f"zosam {zosam_jax.__version__}\n"


def test_an_unknown_command_is_answered_with_the_nearest(capsys):
    assert status("trian") == 2
    assert "'trian' is no command; do you mean train." in said(capsys)
    assert status("xyz") == 2
    assert "`zosam --help` lists them" in said(capsys)


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_help_explains_every_option(command, capsys):
    assert status(command, "--help") == 0
    text = said(capsys)
    assert f"usage: zosam {command}" in text
    kind = cli._options(cli._module(command))
    for field in dataclasses.fields(kind):
        assert f"--{field.name.replace('_', '-')}" in text or field.name in POSITIONAL


def test_the_options_of_train_stand_in_groups(capsys):
    grouped = [name for group in options.GROUPS.values() for name in group]
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    assert len(grouped) == len(set(grouped))
    assert known - set(grouped) == {"recipe"}
    assert set(grouped) <= known
    assert status("train", "--help") == 0
    text = said(capsys)
    places = [text.index(f"{title} options") for title in options.GROUPS]
    assert places[0] == min(places)


def test_grouped_options_are_the_configuration():
    words = ["--epochs", "3", "--rho", "0.1", "--milestones", "0.2", "0.4", "--schedule", "step"]
    parsed = options.parse(TrainConfig, words, prog="zosam train")
    assert parsed == TrainConfig(epochs=3, rho=0.1, milestones=(0.2, 0.4), schedule="step")
    start = TrainConfig(model="resnet32", seed=3)
    parsed = options.parse(TrainConfig, ["--seed", "4"], prog="zosam train", default=start)
    assert parsed == TrainConfig(model="resnet32", seed=4)


def test_a_typo_is_answered_with_options_of_the_command(capsys):
    assert status("train", "--lerning-rate", "0.1") == 2
    text = said(capsys)
    assert "--learning-rate FLOAT" in text
    for other in set(cli.COMMANDS) - {"train"}:
        assert f"zosam {other}" not in text


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["train", "--epochs", "0"], "zosam: epochs=0 must be at least 1"),
        (["train", "--model", "vgg"], "vgg"),
        (["train", "--optimizer", "sgd", "--rho", "0.1"], "rho=0.1 goes with optimizers that"),
        (["train", "--recipe", ""], "recipe='' is not known"),
        (["analyze", "RUN", "--points", "1"], "points=1 must be at least 2"),
        (["bench", "--rounds", "0"], "rounds=0 must be at least 1"),
    ],
)
def test_a_wrong_option_ends_in_a_sentence(words, sentence, capsys):
    assert status(*words) == 2
    assert sentence in said(capsys)


@pytest.mark.parametrize("command", ["train", "compare", "report", "bench"])
def test_an_output_that_cannot_be_written_ends_in_a_sentence(command, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    runs = [str(tmp_path)] if command == "report" else []
    assert status(command, *runs, "--output", str(tmp_path / "file" / "deeper" / "x")) == 1
    assert f"{tmp_path / 'file'} is a file, not a folder" in said(capsys)


def test_a_reader_that_has_seen_enough_causes_no_traceback():
    command = f"{sys.executable} -m zosam_jax recipes | head -1"
    shown = subprocess.run(["bash", "-c", command], check=True, capture_output=True, text=True)
    assert shown.stdout.startswith("recipe")
    assert "Traceback" not in shown.stderr


def test_a_bare_import_needs_neither_flax_nor_the_extras():
    code = (
        "import sys, zosam_jax; "
        "print([m for m in ('flax', 'sklearn', 'tyro', 'rich', 'matplotlib') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert shown.stdout.strip() == "[]"


def test_steps_are_lines_where_there_is_no_terminal(capsys):
    from zosam_jax.commands.steps import Steps  # noqa: PLC0415

    with Steps(Console(file=io.StringIO())) as steps:
        assert list(steps.each("counting", (7, 8))) == [7, 8]
    captured = capsys.readouterr()
    assert captured.err.splitlines() == ["counting 7 (1 of 2)", "counting 8 (2 of 2)"]
