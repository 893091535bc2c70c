"""Parquet files and folders of images, written here as the hub and ImageNet lay them out."""

import io
import pickle
import re
import socket
import subprocess
import sys
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from zosam_jax import data
from zosam_jax.data import hub

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def network(monkeypatch):
    """The hosts that were asked for, none of which answers."""
    asked = []

    def refuse(host, *_args, **_kwargs):
        asked.append(host)
        raise socket.gaierror("no network in tests")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return asked


def encode(image, kind="PNG"):
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def make_images(count, size=(32, 32), seed=0):
    return np.random.default_rng(seed).integers(256, size=(count, *size, 3), dtype=np.uint8)


def encoded(images):
    return [{"bytes": encode(Image.fromarray(image)), "path": None} for image in images]


def class_labels(num_classes):
    return datasets.ClassLabel(names=[f"class {i}" for i in range(num_classes)])


def write_parquet(path, columns, features=None):
    """A file as `datasets` writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    datasets.disable_progress_bars()
    table.to_parquet(path)
    datasets.enable_progress_bars()


def write_splits(folder, features=None, **splits):
    """Files under the names that the hub gives them."""
    for split, columns in splits.items():
        write_parquet(folder / f"{split}-00000-of-00001.parquet", columns, features)


def save(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def write_class_folders(folder, splits=("train", "val"), classes=("cat", "ant", "dog"), count=2):
    """Images of one colour, which tells split, class and number apart."""
    for s, split in enumerate(splits):
        for c, name in enumerate(sorted(classes)):
            for i in range(count):
                image = Image.new("RGB", (12, 10), (60 * s, 60 * c, 60 * i))
                save(folder / split / name / f"{i}.JPEG", image, quality=95)


@pytest.mark.parametrize("prefix", ["", "data/"])
def test_order_labels_and_colours_of_parquet_files(tmp_path, network, capsys, prefix):
    images, labels = make_images(12), [3, 0, 1, 1, 2, 3, 0, 2, 1, 0, 3, 2]
    features = {"img": datasets.Image(), "label": class_labels(5)}
    for number, rows in enumerate((slice(0, 5), slice(5, 9))):
        write_parquet(
            tmp_path / f"{prefix}train-0000{number}-of-00002.parquet",
            {"img": encoded(images[rows]), "label": labels[rows]},
            features,
        )
    write_parquet(
        tmp_path / f"{prefix}test-00000-of-00001.parquet",
        {"img": encoded(images[9:]), "label": labels[9:]},
        features,
    )
    train, test = data.load_records("folder", tmp_path)
    assert (len(train), len(test)) == (9, 3)
    assert train.num_classes == test.num_classes == 5
    for split, rows in ((train, slice(0, 9)), (test, slice(9, 12))):
        np.testing.assert_array_equal([np.asarray(record.image) for record in split], images[rows])
        assert [record.label for record in split] == labels[rows]
    assert network == []
    assert capsys.readouterr() == ("", "")


def test_in_memory_they_are_arrays(tmp_path):
    images = make_images(70 + 3)
    columns = {"image": encoded(images), "label": [i % 4 for i in range(73)]}
    write_splits(
        tmp_path,
        {"image": datasets.Image(), "label": class_labels(4)},
        train={name: column[:70] for name, column in columns.items()},
        test={name: column[70:] for name, column in columns.items()},
    )
    dataset = data.load("folder", tmp_path)
    np.testing.assert_array_equal(dataset.train.images, images[:70])
    np.testing.assert_array_equal(dataset.test.images, images[70:])
    np.testing.assert_array_equal(dataset.train.labels, np.arange(70) % 4)
    assert dataset.train.labels.dtype == np.int32
    assert dataset.pixel_mean == pytest.approx(images[:70].mean(axis=(0, 1, 2)))


def test_parquet_files_that_say_nothing_about_their_columns(tmp_path):
    """A struct of bytes and path is an image, whole numbers are labels, and classes are counted."""
    for split, count in (("train", 5), ("validation", 3)):
        table = pa.table({"image": encoded(make_images(count)), "label": list(range(count))})
        pq.write_table(table, tmp_path / f"{split}.parquet")
    train, test = hub.records(tmp_path)
    assert train.num_classes == test.num_classes == 5
    np.testing.assert_array_equal(test[2].image, make_images(3)[2])
    assert test[2].label == 2


def test_cifar_from_the_parquet_files_of_the_hub(tmp_path):
    images = make_images(6)
    labels = {"fine_label": [99, 0, 5, 6, 7, 8], "coarse_label": [1, 1, 1, 0, 0, 0]}
    features = {"img": datasets.Image(), "fine_label": class_labels(100)}
    features["coarse_label"] = class_labels(20)
    columns = {"img": encoded(images), **labels}
    write_splits(tmp_path / "cifar100", features, train=columns, test=columns)
    dataset = data.load("cifar100", tmp_path)
    np.testing.assert_array_equal(dataset.train.images, images)
    assert dataset.test.labels.tolist() == labels["fine_label"]

    coarse, _ = data.load_records("folder", tmp_path, label="coarse_label")
    assert [record.label for record in coarse] == labels["coarse_label"]
    with pytest.raises(ValueError, match=r"2 label columns \(fine_label, coarse_label\) .* label="):
        data.load("folder", tmp_path)
    with pytest.raises(ValueError, match=r"label='img' is no label column: .*fine_label, coarse"):
        data.load("folder", tmp_path, label="img")
    with pytest.raises(ValueError, match="label='label' is no label column"):
        data.load("cifar10", tmp_path)


def test_other_images_are_not_taken_for_cifar(tmp_path):
    columns = {"img": encoded(make_images(2, size=(28, 28))), "label": [0, 1]}
    features = {"img": datasets.Image(), "label": class_labels(10)}
    write_splits(tmp_path, features, train=columns, test=columns)
    with pytest.raises(ValueError, match=r"shape \(28, 28, 3\) in 10 classes, where \(32, 32, 3\)"):
        data.load("cifar10", tmp_path)


def test_a_test_split_without_labels_gives_way_to_validation(tmp_path):
    features = {"image": datasets.Image(), "label": class_labels(3)}
    columns = {"image": encoded(make_images(3)), "label": [0, 1, 2]}
    validation = {"image": encoded(make_images(1, seed=1)), "label": [2]}
    unlabelled = columns | {"label": [-1, -1, -1]}
    write_splits(tmp_path, features, train=columns, test=unlabelled, validation=validation)
    _, test = data.load_records("imagenet", tmp_path)
    assert [record.label for record in test] == [2]
    np.testing.assert_array_equal(test[0].image, make_images(1, seed=1)[0])


def test_a_labelled_test_split_is_preferred(tmp_path):
    features = {"image": datasets.Image(), "label": class_labels(3)}
    columns = {"image": encoded(make_images(3)), "label": [0, 1, 2]}
    write_splits(
        tmp_path, features, train=columns, validation=columns, test=columns | {"label": [2, 2, 2]}
    )
    assert [record.label for record in hub.records(tmp_path)[1]] == [2, 2, 2]


def test_class_folders_are_numbered_by_sorted_name(tmp_path, network):
    write_class_folders(tmp_path)
    (tmp_path / "train" / "ant" / "notes.txt").write_text("no image")
    train, test = data.load_records("folder", tmp_path)
    assert train.num_classes == 3
    assert [record.label for record in train] == [0, 0, 1, 1, 2, 2]
    for split, records in enumerate((train, test)):
        colours = np.array([np.asarray(record.image)[5, 5] for record in records], int)
        written = [(60 * split, 60 * label, 60 * i) for label in range(3) for i in range(2)]
        np.testing.assert_allclose(colours, written, atol=3)
    assert network == []


def test_classes_named_like_splits_stay_in_their_split(tmp_path):
    write_class_folders(tmp_path, classes=("train", "test", "val"))
    train, test = hub.records(tmp_path)
    assert (len(train), len(test)) == (6, 6)
    assert all(np.asarray(record.image)[0, 0, 0] < 5 for record in train)
    assert all(np.asarray(record.image)[0, 0, 0] > 55 for record in test)


def test_flat_test_images_have_no_labels(tmp_path):
    """As the competition's files of ImageNet lie."""
    write_class_folders(tmp_path)
    save(tmp_path / "test" / "ILSVRC2012_test_00000001.JPEG", Image.new("RGB", (8, 8)))
    assert len(hub.records(tmp_path)[1]) == 6


def test_a_relative_folder_outlives_a_change_of_folder(tmp_path, monkeypatch):
    write_class_folders(tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    train, _ = data.load_records("folder", Path("images"))
    monkeypatch.chdir("images")
    assert train[0].label == 0


def test_a_class_that_training_lacks(tmp_path):
    write_class_folders(tmp_path)
    save(tmp_path / "val" / "cow" / "0.JPEG", Image.new("RGB", (8, 8)))
    with pytest.raises(ValueError, match=r"val/cow is a class without a folder among train's\."):
        hub.records(tmp_path)


def test_an_empty_split_is_named(tmp_path):
    write_class_folders(tmp_path)
    for path in (tmp_path / "val").rglob("*.JPEG"):
        path.unlink()
    with pytest.raises(ValueError, match=rf"the val split of {tmp_path} is empty\."):
        hub.records(tmp_path)


@pytest.mark.parametrize("damage", [lambda good: good[:-200], lambda _: b"no image", lambda _: b""])
def test_a_damaged_file_is_named_when_it_is_read(tmp_path, damage):
    write_class_folders(tmp_path)
    path = tmp_path / "train" / "cat" / "1.JPEG"
    path.write_bytes(damage(path.read_bytes()))
    train, test = hub.records(tmp_path)
    assert train[2].label == 1
    message = re.escape(f"image 3 of the train split of {tmp_path} ({path}) cannot be read: ")
    with pytest.raises(ValueError, match=message):
        train[3]
    with pytest.raises(ValueError, match=message):
        hub.in_memory(train, test)


def test_a_damaged_image_in_a_parquet_file_is_numbered(tmp_path):
    images = encoded(make_images(3))
    images[1] = {"bytes": images[1]["bytes"][:60], "path": None}
    columns = {"image": images, "label": [0, 1, 0]}
    features = {"image": datasets.Image(), "label": class_labels(2)}
    write_splits(tmp_path, features, train=columns, test=columns)
    _, test = hub.records(tmp_path)
    with pytest.raises(ValueError, match=f"image 1 of the test split of {tmp_path} cannot be read"):
        test[1]


def palette():
    image = Image.new("P", (8, 8), 1)
    image.putpalette([*BLUE, *RED])
    return encode(image)


def palette_with_transparency():
    image = Image.new("P", (8, 8), 1)
    image.putpalette([*BLUE, *RED])
    stream = io.BytesIO()
    image.save(stream, "PNG", transparency=bytes([0, 128]))
    return stream.getvalue()


COLOURED = {
    "palette": palette,
    "palette with transparency": palette_with_transparency,
    "RGBA": lambda: encode(Image.new("RGBA", (8, 8), (*RED, 128))),
    "CMYK": lambda: encode(Image.new("RGB", (8, 8), RED).convert("CMYK"), "JPEG"),
    "JPEG": lambda: encode(Image.new("RGB", (8, 8), RED), "JPEG"),
}
GREY = {
    "L": lambda: encode(Image.new("L", (8, 8), 77)),
    "LA": lambda: encode(Image.new("LA", (8, 8), (77, 128))),
    "JPEG": lambda: encode(Image.new("L", (8, 8), 77), "JPEG"),
}


def write_encoded(folder, *contents):
    columns = {
        "image": [{"bytes": content, "path": None} for content in contents],
        "label": [i % 2 for i in range(len(contents))],
    }
    features = {"image": datasets.Image(), "label": class_labels(2)}
    write_splits(folder, features, train=columns, test=columns)


def test_red_is_red_in_every_encoding(tmp_path):
    write_encoded(tmp_path, *(encoder() for encoder in COLOURED.values()))
    for kind, (image, _) in zip(COLOURED, hub.records(tmp_path)[0], strict=True):
        assert image.mode == "RGB"
        np.testing.assert_allclose(np.asarray(image, int)[4, 4], RED, atol=2, err_msg=kind)


def test_grey_stays_grey(tmp_path):
    write_encoded(tmp_path, *(encoder() for encoder in GREY.values()))
    train, test = hub.records(tmp_path)
    assert [record.image.mode for record in train] == ["L"] * 3
    images = hub.in_memory(train, test).train.images
    assert images.shape == (3, 8, 8, 1)
    assert (images == 77).all()


def test_grey_becomes_rgb_beside_colour(tmp_path):
    write_encoded(tmp_path, GREY["L"](), GREY["L"](), COLOURED["JPEG"]())
    image = hub.records(tmp_path)[0][0].image
    assert image.mode == "RGB"
    assert image.getpixel((0, 0)) == (77, 77, 77)


def test_pixels_of_16_bits_are_refused(tmp_path):
    write_encoded(tmp_path, encode(Image.new("I;16", (8, 8), 40_000)))
    with pytest.raises(ValueError, match="its pixels are of mode I;16, not of 8 bits per channel"):
        hub.records(tmp_path)[0][0]


@pytest.mark.parametrize("write", [write_class_folders, lambda p: write_encoded(p, palette())])
def test_records_travel_to_other_processes(tmp_path, write):
    write(tmp_path)
    train, _ = hub.records(tmp_path)
    copy = pickle.loads(pickle.dumps(train))
    assert (len(copy), copy.num_classes) == (len(train), train.num_classes)
    np.testing.assert_array_equal(copy[0].image, train[0].image)


def test_images_of_different_sizes_need_image_size(tmp_path):
    write_encoded(
        tmp_path,
        encode(Image.new("RGB", (40, 20), RED)),
        encode(Image.new("RGB", (30, 30), GREEN)),
    )
    message = (
        r"images of 20×40×3 and 30×30×3 .* do not fit into one array, .*image 1 of the train split"
    )
    with pytest.raises(ValueError, match=message):
        data.load("folder", tmp_path)
    dataset = data.load("folder", tmp_path, image_size=10)
    np.testing.assert_array_equal(dataset.train.images[0], np.broadcast_to(RED, (10, 10, 3)))
    np.testing.assert_array_equal(dataset.train.images[1], np.broadcast_to(GREEN, (10, 10, 3)))
    with pytest.raises(ValueError, match="image_size=0 must be at least 1"):
        data.load("folder", tmp_path, image_size=0)


def test_splits_of_different_sizes_need_image_size(tmp_path):
    features = {"image": datasets.Image(), "label": class_labels(2)}
    splits = {
        name: {"image": encoded(make_images(2, size)), "label": [0, 1]}
        for name, size in (("train", (8, 8)), ("test", (8, 9)))
    }
    write_splits(tmp_path, features, **splits)
    with pytest.raises(ValueError, match="images of 8×8×3 and 8×9×3"):
        data.load("folder", tmp_path)


@pytest.mark.parametrize(("width", "height"), [(60, 40), (40, 60)])
def test_image_size_scales_the_shorter_side_and_cuts_out_the_centre(tmp_path, width, height):
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([4 * x, 4 * y, 2 * (x + y)], axis=-1).astype(np.uint8)
    write_encoded(tmp_path, encode(Image.fromarray(pixels)))
    image = data.load("folder", tmp_path, image_size=20).train.images[0]
    left, top = (width - 40) // 2, (height - 40) // 2
    square = pixels[top : top + 40, left : left + 40].reshape(20, 2, 20, 2, 3)
    # Bicubic scaling keeps a linear ramp, except near the border.
    inside = slice(2, -2)
    np.testing.assert_allclose(
        image[inside, inside], square.mean(axis=(1, 3))[inside, inside], atol=1
    )


def test_labels_out_of_range(tmp_path):
    features = {"image": datasets.Image(), "label": datasets.Value("int64")}
    columns = {"image": encoded(make_images(2)), "label": [-2, 4]}
    write_splits(tmp_path, features, train=columns, test=columns)
    with pytest.raises(
        ValueError, match=r"the train split of .* gives image 0 the label -2, where 0 to 4 are"
    ):
        hub.records(tmp_path)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"label": class_labels(2)}, "has no image columns among its columns label; one is"),
        ({"a": datasets.Image(), "b": datasets.Image()}, r"has 2 image columns \(a, b\) among"),
        (
            {"a": datasets.Image(), "b": datasets.Value("string")},
            "has no label columns among .*a, b",
        ),
    ],
)
def test_columns_that_are_not_labelled_images(tmp_path, features, message):
    rows = {datasets.Image: encoded(make_images(1))[0], datasets.ClassLabel: 0, datasets.Value: "x"}
    columns = {name: [rows[type(feature)]] for name, feature in features.items()}
    write_splits(tmp_path, features, train=columns, test=columns)
    with pytest.raises(ValueError, match=message):
        hub.records(tmp_path)


def test_class_names_are_preferred_to_other_numbers(tmp_path):
    features = {
        "id": datasets.Value("int64"),
        "image": datasets.Image(),
        "kind": class_labels(2),
    }
    columns = {"id": [7, 8], "image": encoded(make_images(2)), "kind": [1, 0]}
    write_splits(tmp_path, features, train=columns, test=columns)
    assert [record.label for record in hub.records(tmp_path)[0]] == [1, 0]
    assert [record.label for record in hub.records(tmp_path, label="id")[0]] == [7, 8]


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (["test"], "has no train split, only test"),
        (
            ["train"],
            "has no test split with labels: one of test, validation, val .* there is train",
        ),
    ],
)
def test_missing_splits(tmp_path, splits, message):
    columns = {"image": encoded(make_images(1)), "label": [0]}
    features = {"image": datasets.Image(), "label": class_labels(1)}
    write_splits(tmp_path, features, **dict.fromkeys(splits, columns))
    with pytest.raises(FileNotFoundError, match=message):
        hub.records(tmp_path)


def test_folders_without_data(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no data: put parquet files as the hub"):
        data.load("folder", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"data_dir='.*none' is not a folder\."):
        data.load("folder", tmp_path / "none")


def test_a_damaged_parquet_file(tmp_path):
    write_encoded(tmp_path, palette())
    path = tmp_path / "train-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(
        ValueError, match=f"data_dir='{tmp_path}' cannot be read: {path} \\(Arrow"
    ) as caught:
        hub.records(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_hub_out_of_reach(tmp_path, monkeypatch, network):
    for module in (datasets.config, huggingface_hub.constants):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    write_encoded(tmp_path / "owner" / "name", palette())
    for load, name in (
        (data.load_records, "imagenet"),
        (data.load, "cifar10"),
        (data.load, "hub:owner/name"),
    ):
        message = "is not in the local cache and the Hugging Face hub cannot be .* --data-dir DIR"
        with pytest.raises(ConnectionError, match=message):
            load(name)
    assert network == []


@pytest.mark.parametrize(
    ("raised", "expected", "message"),
    [
        (
            datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' is a gated dataset."),
            FileNotFoundError,
            "a/b cannot be had from .*: Dataset 'a/b' is a gated dataset. .* `hf auth login`",
        ),
        (
            RuntimeError("Dataset scripts are no longer supported"),
            ValueError,
            r"a/b cannot be read from the Hugging Face hub \(RuntimeError: Dataset scripts",
        ),
    ],
)
def test_what_the_hub_refuses(monkeypatch, raised, expected, message):
    def refuse(path):
        assert path == "hf://datasets/a/b"
        raise raised

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(expected, match=message):
        data.load_records("hub:a/b")


@pytest.mark.parametrize("name", ["hub:mnist", "hub:", "hub:/data/imagenet", "hub:a/b/c"])
def test_a_name_that_the_hub_cannot_have(name):
    with pytest.raises(ValueError, match="is no name on the Hugging Face hub: write OWNER/NAME"):
        data.load(name)


def test_unknown_names_list_the_choices():
    streamed = "imagenet, folder, hub:OWNER/NAME"
    with pytest.raises(
        ValueError, match=f"choose one of digits, .*, cifar100, FILE.npz, {streamed}"
    ):
        data.load("mnist")
    with pytest.raises(ValueError, match=f"'cifar10' is not known; choose one of {streamed}"):
        data.load_records("cifar10")
    with pytest.raises(ValueError, match="dataset='folder' is read from files: pass --data-dir"):
        data.load("folder")


@pytest.mark.parametrize("option", [{"image_size": 8}, {"label": "label"}])
def test_options_without_a_use_are_refused(option):
    with pytest.raises(ValueError, match="is for imagenet, folder, hub:OWNER/NAME; digits has no"):
        data.load("digits", **option)


def test_digits_need_neither_datasets_nor_pillow():
    script = """
import sys
sys.modules["datasets"] = sys.modules["PIL"] = None
from zosam_jax import data
print(len(data.load("digits").test))
try:
    data.load("hub:owner/name")
except ModuleNotFoundError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        "360",
        "reading images takes datasets, which comes with: pip install 'zosam_jax[data]'",
    ]
