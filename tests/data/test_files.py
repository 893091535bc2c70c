"""Files that others made: what was made to do harm, what is damaged, and what is no file at all."""

import json
import subprocess
import sys
from pathlib import Path

import datasets
import hostile
import numpy as np
import pytest
from PIL import Image

from zosam_jax import data
from zosam_jax.data import files, hub, images
from zosam_jax.data.stream import Stream

CRAFTED = hostile.crafted()
# Inside an archive a pickle is the same pickle; a few show that nothing else is done with it.
QUICK = [
    case
    for index, case in enumerate(CRAFTED)
    if not case.heavy and (case.kind != "pickle in an archive" or index % 12 == 0)
]


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.mark.parametrize("case", QUICK, ids=[f"{case.kind}: {case.name}"[:60] for case in QUICK])
@pytest.mark.filterwarnings("ignore")  # Pillow's and NumPy's, before the sentence.
def test_a_file_that_was_made_to_do_harm_ends_in_a_sentence(tmp_path, case):
    folder = tmp_path / "data-set"
    folder.mkdir()
    expected = hostile.READ if case.name in hostile.HARMLESS else hostile.REFUSED
    if case.kind == "no regular file":
        expected = hostile.REFUSED
    assert hostile.attack(case, folder) == expected


@pytest.mark.parametrize(
    ("loader", "write"),
    [
        (hostile.load_cifar10, lambda f: hostile.write_batches(f, hostile.batch())),
        (hostile.load_cifar10, lambda f: hostile.write_archive(f, hostile.batch())),
        (hostile.load_fashion, hostile.write_fashion),
        (hostile.load_fog, hostile.write_fog),
        (hostile.load_folder, hostile.write_class_folders),
        (
            hostile.load_folder,
            lambda f: hostile.write_parquet(f, {"bytes": hostile.picture(), "path": None}),
        ),
    ],
)
def test_what_the_harmful_files_are_made_from_is_read(tmp_path, loader, write):
    """Else they would be refused for another reason than theirs."""
    write(tmp_path)
    assert loader(tmp_path) is not None


def test_the_watch_sees_what_no_file_may_lead_to(tmp_path):
    (tmp_path / hostile.OUTSIDE).write_text("secret")
    with hostile.watched() as deeds:
        subprocess.run(["true"], check=True)
        (tmp_path / hostile.OUTSIDE).read_text()
    assert any(deed.startswith("subprocess.Popen") for deed in deeds)
    assert any(deed.startswith("open(") for deed in deeds)


def test_a_row_may_point_to_a_file_below_its_folder(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(hostile.picture())
    hostile.write_parquet(tmp_path, {"bytes": None, "path": "images/a.png"})
    first, second = data.load("folder", tmp_path).train.images
    np.testing.assert_array_equal(first, second)


def test_links_among_class_folders_may_lead_anywhere(tmp_path):
    """So are the validation images of ImageNet often laid out."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.png").write_bytes(hostile.picture())
    hostile.write_class_folders(tmp_path / "data")
    (tmp_path / "data" / "train" / "bee" / "1.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    assert len(data.load("folder", tmp_path / "data").train) == 3


@pytest.mark.parametrize("name", ["cifar10", "fashion-mnist", "folder"])
def test_a_folder_whose_name_is_not_utf_8(name):
    with pytest.raises(ValueError, match=r"^/data/\\xff has a name that is not UTF-8: rename it"):
        data.load(name, Path("/data/\udcff"))


def test_archives_and_addresses_in_a_folder_of_parquet_files_are_left_alone(tmp_path):
    hostile._write_pictures_in_archives(tmp_path)
    hostile.write_parquet(tmp_path, {"bytes": hostile.picture(), "path": None})
    with hostile.watched() as deeds:
        assert len(data.load("folder", tmp_path).train) == 2
    assert deeds == []


def test_a_stream_gives_so_many_bytes_and_no_more(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(10))
    assert files.read(path, 10) == bytes(10)
    with pytest.raises(ValueError, match=f"^{path} cannot be read: it holds more than the 9 bytes"):
        files.read(path, 9)


def campaign(*arguments: str) -> dict:
    script = Path(hostile.__file__)
    done = subprocess.run(
        [sys.executable, str(script), *arguments], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.slow
def test_no_crafted_file_crashes_the_process_that_reads_it():
    result = campaign("crafted")
    assert result["failures"] == []
    assert sum(count for *_, count in result["counts"]) == len(CRAFTED)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_no_file_damaged_at_random_crashes_the_process_that_reads_it(seed):
    assert campaign("random", "100", str(seed))["failures"] == []


def rows_from_the_hub(monkeypatch, path, content=None):
    """What load_dataset would give for a set of the hub with this image in each row."""
    feature = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a"])}
    split = datasets.Dataset.from_dict(
        {"image": [{"bytes": content, "path": path}], "label": [0]}, datasets.Features(feature)
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda _: {"train": split, "test": split})
    return data.load_records("hub:a/b")[0]


def test_the_rules_hold_for_the_hub_as_well(tmp_path, monkeypatch):
    cache = Path(datasets.config.HF_DATASETS_CACHE)
    for folder in (tmp_path, cache):
        (folder / "a.png").write_bytes(hostile.picture())
    assert rows_from_the_hub(monkeypatch, str(cache / "a.png"))[0].image.size == (16, 16)
    with pytest.raises(ValueError, match=r"image 0 of the train split of a/b .* leads out of"):
        rows_from_the_hub(monkeypatch, str(tmp_path / "a.png"))[0]
    with pytest.raises(ValueError, match="of a/b cannot be read: it is no image in the format JP"):
        rows_from_the_hub(monkeypatch, None, hostile.POSTSCRIPT)[0]


def test_images_that_do_not_fit_into_the_memory(tmp_path, monkeypatch):
    hostile.write_class_folders(tmp_path)

    def refuse(shape, kind):
        raise MemoryError

    monkeypatch.setattr(hub.np, "empty", refuse)
    with pytest.raises(ValueError, match=f"the 2 images of the train split of {tmp_path} take"):
        data.load("folder", tmp_path)


@pytest.mark.parametrize("size", [8193, 10**6])
def test_an_image_size_beyond_all_memory(tmp_path, size):
    hostile.write_class_folders(tmp_path)
    with pytest.raises(ValueError, match=f"image_size={size} must be at most 8192"):
        data.load("folder", tmp_path, image_size=size)
    train, test = data.load_records("folder", tmp_path)
    with pytest.raises(ValueError, match=f"image_size={size} must be at most 8192"):
        Stream(train, test, image_size=size)


def test_an_image_that_is_too_long_for_a_centre_crop_is_named(tmp_path):
    hostile.write_class_folders(tmp_path)
    Image.new("L", (1, 100_000)).save(tmp_path / "test" / "bee" / "0.png")
    message = (
        rf"image 1 of the test split of {tmp_path}: its 1×100000 pixels become 256×25600000 "
        "for crops of 224, more than 67,108,864"
    )
    with pytest.raises(ValueError, match=message):
        list(Stream(*data.load_records("folder", tmp_path), image_size=224).test(batch_size=2))
    dataset = data.load("folder", tmp_path, image_size=224)
    assert dataset.test.images.shape == (2, 224, 224, 3)


@pytest.mark.parametrize(("width", "readable"), [(8192, True), (8193, False)])
def test_the_largest_image(tmp_path, width, readable):
    Image.new("L", (width, 8192)).save(tmp_path / "a.png", compress_level=1)
    if readable:
        with images.open_image(tmp_path / "a.png") as image:
            assert image.size == (width, 8192)
    else:
        with pytest.raises(ValueError, match="it has more than the 67,108,864 pixels"):
            images.open_image(tmp_path / "a.png")
