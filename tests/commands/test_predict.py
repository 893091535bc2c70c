"""`zosam predict` and open_run's predict on image files, against the network by hand."""

import csv
import io
import json

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import zosam_jax
from zosam_jax import cli, data
from zosam_jax.commands import predict as command

SMALL = ["--model", "lenet-300-100", "--epochs", "2", "--mesh", "data=1", "--optimizer", "sgd"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("predict") / "run"
    cli.main(["train", *SMALL, "--output", str(path)])
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Ten test images as files, a note and a broken file beside them."""
    path = tmp_path_factory.mktemp("images")
    test = data.load("digits").test
    for number in range(10):
        Image.fromarray(test.images[number, ..., 0]).save(path / f"{number}.png")
    (path / "note.txt").write_text("no image")
    return path


def predict(*words, capsys):
    capsys.readouterr()
    try:
        cli.main(["predict", *map(str, words)])
        status = 0
    except SystemExit as ended:
        status = ended.code
    captured = capsys.readouterr()
    return captured.out, captured.err, status


def test_files_arrays_and_pillows_images_are_the_same(folder, images):
    test = data.load("digits").test
    files = sorted(images.glob("*.png"))
    with zosam_jax.open_run(folder) as run:
        expected = run.predict(test.images[:10])
        np.testing.assert_array_equal(run.predict(files), expected)
        np.testing.assert_array_equal(run.predict(list(map(str, files))), expected)
        np.testing.assert_array_equal(run.predict([Image.open(f) for f in files]), expected)
        np.testing.assert_allclose(run.predict(files[3]), expected[3:4], rtol=1e-5)
        np.testing.assert_allclose(run.predict(files, batch_size=4), expected, rtol=1e-5)
        outputs = run.model(run.preprocess(test.images[:10]))
        assert (np.argmax(outputs, -1) == expected.argmax(-1)).all()
        accuracy = np.mean(run.predict(test.images).argmax(-1) == test.labels)
        assert accuracy == run.summary["test_accuracy"]
        assert run.data.class_names == tuple("0123456789")
        assert len(run.metrics) == 2


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (np.zeros((2, 8, 8)), r"images of shape \(2, 8, 8\) and dtype float64 are not what"),
        (np.zeros((8, 8, 1), np.uint8), r"\(n, 8, 8, 1\) of uint8"),
        (np.zeros((0, 8, 8, 1), np.uint8), "n at least 1"),
        (["missing.png"], "missing.png cannot be read: it does not exist"),
    ],
)
def test_images_that_do_not_fit(given, sentence, folder):
    with zosam_jax.open_run(folder) as run, pytest.raises(ValueError, match=sentence):
        run.predict(given)


def test_a_table_json_and_csv_say_the_same(folder, images, capsys):
    out, _, status = predict(folder, images, "--json", capsys=capsys)
    rows = json.loads(out)
    assert status == 0
    assert [row["image"] for row in rows] == [str(f) for f in sorted(images.glob("*.png"))]
    with zosam_jax.open_run(folder) as run:
        expected = run.predict(sorted(images.glob("*.png")))
    for row, probabilities in zip(rows, expected, strict=True):
        assert row["class"] == str(probabilities.argmax())
        assert list(row["probabilities"].values()) == probabilities.tolist()
    out, _, _ = predict(folder, images, "--csv", capsys=capsys)
    header, *lines = csv.reader(io.StringIO(out))
    assert header == ["image", "class", *"0123456789"]
    assert [line[1] for line in lines] == [row["class"] for row in rows]
    out, _, _ = predict(folder, images / "3.png", "--top", "1", capsys=capsys)
    assert f"{rows[3]['class']} {rows[3]['probability']:.1%}" in out


def test_what_cannot_be_read_is_named_and_the_rest_goes_on(folder, images, tmp_path, capsys):
    (tmp_path / "broken.png").write_bytes(b"PNG")
    words = (folder, images / "1.png", tmp_path / "broken.png", tmp_path / "none.png")
    out, err, status = predict(*words, "--json", capsys=capsys)
    assert status == 1
    assert "broken.png cannot be read: it is no image" in " ".join(err.split())
    assert ["error" in row for row in json.loads(out)] == [False, True, True]
    out, err, status = predict(folder, tmp_path, capsys=capsys)
    assert status == 1


def test_refusals(folder, tmp_path, capsys):
    assert predict(tmp_path, folder, capsys=capsys)[2] == 2
    out, _, status = predict(folder, tmp_path, capsys=capsys)
    assert (status, "holds no images" in out) == (2, True)
    out, _, status = predict(folder, folder, "--model", "a.b:c", capsys=capsys)
    assert status == 2


def test_names_are_printed_as_they_are():
    row = {"image": "[red]a:smile:.png", "class": "[b]", "probabilities": {"[b]": 1.0}}
    console = Console(file=io.StringIO(), width=80)
    console.print(command._table([row], 3))
    command._write(console, command._csv([row]))
    table, line = console.file.getvalue().splitlines()[3].strip(), console.file.getvalue()
    assert table.startswith("[red]a:smile:.png")
    assert "[b] 100.0%" in table
    assert line.endswith("[red]a:smile:.png,[b],1.0\n")


def test_json_has_null_where_a_number_is_none(folder, images, capsys, monkeypatch):
    rows = [{"image": "a", "outputs": [float("nan"), 1.0]}]
    monkeypatch.setattr(command, "predictions", lambda *_: rows)
    said, _, _ = predict(folder, images / "0.png", "--json", capsys=capsys)
    assert json.loads(said, parse_constant=pytest.fail) == [{"image": "a", "outputs": [None, 1.0]}]
