"""Labelled images from the Hugging Face hub, from its parquet files, or from folders of images."""

import contextlib
import glob
import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zosam_jax.data import files
from zosam_jax.data.dataset import Dataset, Split, check_labels, from_splits
from zosam_jax.trees import Int, UInt8

# Read when `datasets` is imported; what the user has set stays.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")
try:
    import datasets
    import huggingface_hub.constants
    import pyarrow.parquet  # type: ignore[import-untyped]
    from PIL import Image, ImageOps

    from zosam_jax.data.images import check_image_size, convert, open_image
    from zosam_jax.data.records import LabelledImage, Records
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        f"reading images takes {missing.name}, which comes with: pip install 'zosam_jax[data]'"
    ) from missing

Splits = Mapping[str, datasets.Dataset]

# In order of preference.
_TEST_SPLITS = ("test", "validation", "val")
# The words in the names of parquet files, and of their folders, that say of which split they are.
_SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
}
_SPLIT_WORD = re.compile(rf"(?:^|[/._ \d-])({'|'.join(_SPLIT_WORDS)})(?=[/._ \d-])")
_GREY = ("1", "L", "LA")
_UNLABELLED = -1
# Labels without class names count the classes by their largest.
_MOST_CLASSES = 2**20
# Images decoded by a thread at a time: for small images, handing over costs more than decoding.
_BLOCK = 64


def records(source: str | Path, *, label: str | None = None) -> tuple[Records, Records]:
    """The training and the test split of a data set, its images left encoded where they are.

    The test split is the first of "test", "validation" and "val" whose labels are known: that of
    ImageNet-1K has none, so its validation split is taken. The first reading of parquet files,
    local or from the hub, turns them into Arrow files in the cache of `datasets`
    (HF_DATASETS_CACHE), which are about as large again. Without a network, a set of the hub is
    read from there after some attempts to connect, or at once if HF_HUB_OFFLINE=1.

    Args:
      source: as a string, OWNER/NAME on the Hugging Face hub. As a Path, a folder, read without
        the network: either parquet files as the hub lays them out (train-00000-of-00001.parquet,
        …), or images in SPLIT/CLASS/IMAGE, classes numbered by sorted name. Images are in the
        formats of `images.FORMATS`; where a parquet file has a path instead of an image, it must
        be that of a file below the folder.
      label: the column of labels; needed only if there are several.

    Returns:
      Two splits of images in one mode: "L" if every image is grey, else "RGB". Transparency and
      EXIF orientation are ignored, as is the custom with ImageNet.

    Raises:
      ValueError: if the columns or the labels are not those of labelled images, or the files
        cannot be read.
      FileNotFoundError: if there is no such data set, folder or split, or no access to it.
      ConnectionError: if the hub cannot be reached and has not been read from before.
    """
    splits = _from_folder(source) if isinstance(source, Path) else _from_hub(source)
    if "train" not in splits:
        raise FileNotFoundError(f"{source} has no train split, only {', '.join(splits)}.")
    features = splits["train"].features
    image_column = _image_column(features, source)
    label_column = _label_column(features, source, label)
    rows = {name: _undecoded(split, image_column, label_column) for name, split in splits.items()}
    chosen = {"train": rows["train"], **_labelled_test_split(rows, source)}
    num_classes = _num_classes(features[label_column], chosen, source)
    folders = _image_folders(source)
    named = getattr(features[label_column], "names", None)
    names = None if named is None else tuple(named)
    train, test = (
        _Rows(split, f"the {name} split of {source}", num_classes, names, "L", folders)
        for name, split in chosen.items()
    )
    if train.has_colour() or test.has_colour():
        train.mode = test.mode = "RGB"
    return train, test


def in_memory(train: Records, test: Records, *, image_size: int | None = None) -> Dataset:
    """Decodes two splits into arrays.

    With `image_size` the shorter side is scaled to so many pixels (bicubic) and the central square
    cut out; without it, all images must be of one size.
    """
    if image_size is not None:
        check_image_size(image_size)
    training, testing = _decode_all(train, image_size), _decode_all(test, image_size)
    _check_same_size(training.images.shape[1:], testing.images.shape[1:], f"image 0 of {test}")
    return from_splits(training, testing, train.num_classes)._replace(class_names=train.class_names)


@dataclass
class _Rows:
    """Records over a table with the columns "image" ({bytes, path}) and "label"."""

    rows: datasets.Dataset
    name: str  # what messages call it
    num_classes: int
    class_names: tuple[str, ...] | None
    mode: str
    # images that are given by a path lie below one of them; None where the paths have been listed
    # here, so that links in class folders may lead anywhere
    folders: tuple[Path, ...] | None

    def __str__(self) -> str:
        return self.name

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> LabelledImage:
        if index >= len(self):
            raise IndexError(index)  # By which iteration ends.
        path = None
        try:
            row = self.rows[index]
            path = (row["image"] or {}).get("path")
            with self._open(row["image"]) as image:
                return LabelledImage(convert(image, self.mode), row["label"])
        except Exception as error:  # Pillow's many decoders raise errors of any kind.
            shown = f" ({path if path.isprintable() else repr(path):.200})" if path else ""
            raise ValueError(
                f"image {index} of {self.name}{shown} cannot be read: {files.one_line(error)}"
            ) from error

    def has_colour(self) -> bool:
        """Whether any image is not grey; reads headers only, and only up to the first of colour."""
        images = self.rows.select_columns("image")
        for index in range(len(images)):
            try:
                with self._open(images[index]["image"]) as image:
                    if image.mode not in _GREY:
                        return True
            except Exception:  # To be named when the record is read.
                continue
        return False

    def _open(self, encoded: Mapping[str, Any] | None) -> Image.Image:
        if encoded is None or encoded["bytes"] is encoded["path"] is None:
            raise ValueError("there is none, only null.")
        if encoded["bytes"] is not None:
            return open_image(encoded["bytes"])
        path = Path(encoded["path"])
        return open_image(path if self.folders is None else _below(self.folders, path))


def _image_folders(source: str | Path) -> tuple[Path, ...] | None:
    if isinstance(source, Path):
        return None if _subfolders(source / "train") else (source.absolute(),)
    # Where `datasets` puts what it has from the hub, or unpacks.
    cache = (datasets.config.HF_DATASETS_CACHE, huggingface_hub.constants.HF_HUB_CACHE)
    return tuple(map(Path, cache))


def _below(folders: tuple[Path, ...], path: Path) -> Path:
    """A file below one of the folders, all links resolved: others' tables may name any file."""
    for folder in map(os.path.realpath, folders):
        resolved = Path(os.path.realpath(os.path.join(folder, path)))
        if resolved.is_relative_to(folder):
            return resolved
    raise ValueError(f"its path leads out of {' and '.join(map(str, folders))}.")


def _from_hub(name: str, subset: str | None = None) -> Splits:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ValueError(f"{name!r} is no name on the Hugging Face hub: write OWNER/NAME.")
    try:
        # Without the prefix, a folder OWNER/NAME below the working directory would be read.
        with _no_progress_bars():
            splits: Splits = datasets.load_dataset(
                f"hf://datasets/{name}", *(() if subset is None else (subset,))
            )
            return splits
    except ConnectionError as error:
        raise ConnectionError(
            f"{name} is not in the local cache and the Hugging Face hub cannot be reached: "
            "connect to the network, or pass --data-dir DIR with a copy of its files."
        ) from error
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{name} cannot be had from the Hugging Face hub: {error} Check the name; for a gated "
            "data set, accept its terms on its page and run `hf auth login`; or pass --data-dir "
            "DIR with a copy of its files."
        ) from error
    except Exception as error:  # Whatever the HTTP and file format libraries raise.
        raise ValueError(
            f"{name} cannot be read from the Hugging Face hub ({type(error).__name__}: "
            f"{files.one_line(error)}); a copy of its files can be read with --data-dir DIR."
        ) from error


def _from_folder(folder: Path) -> Splits:
    if not folder.is_dir():
        raise FileNotFoundError(f"data_dir={str(folder)!r} is not a folder.")
    if _subfolders(folder / "train"):
        return _class_folders(folder.absolute())
    parts = _parquet_files(folder.resolve())
    if not parts:
        raise FileNotFoundError(
            f"data_dir={str(folder)!r} holds no data: put parquet files as the hub lays them out "
            "(train-00000-of-00001.parquet, …) or images as SPLIT/CLASS/IMAGE there."
        )
    try:
        with _no_progress_bars():
            splits: Splits = datasets.DatasetDict.from_parquet(
                {split: list(map(glob.escape, paths)) for split, paths in parts.items()}
            )
            return splits
    except Exception as error:  # Whatever the file format libraries raise.
        reason = error.__cause__ or error
        raise ValueError(
            f"data_dir={str(folder)!r} cannot be read{_damaged_file(parts)} "
            f"({type(reason).__name__}: {files.one_line(reason)})."
        ) from error


def _parquet_files(folder: Path) -> dict[str, list[str]]:
    """The parquet files below a folder by their split, which their names or their folders' say.

    `load_dataset` of the folder would also unpack archives, and follow the addresses in a README.
    """
    # In this order: it is from the first that `datasets` takes the types of the columns.
    parts: dict[str, list[str]] = {"train": [], "test": [], "validation": []}
    for path in sorted(folder.rglob("*.parquet")):
        relative = path.relative_to(folder)
        word = _SPLIT_WORD.search(relative.as_posix())
        if word is None or path.is_dir() or any(part[0] == "." for part in relative.parts):
            continue
        files.check_name(path)
        if files.find(path):
            parts[_SPLIT_WORDS[word[1]]].append(str(path))
    return {split: paths for split, paths in parts.items() if paths}


def _damaged_file(parts: Mapping[str, list[str]]) -> str:
    """The first file that cannot be read through, after a colon; nothing if all can."""
    for path in itertools.chain.from_iterable(parts.values()):
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                for _ in file.iter_batches(_BLOCK):
                    pass
        except Exception:  # Whatever the file format libraries raise.
            return f": {path}"
    return ""


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    bars_shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if bars_shown:
            datasets.enable_progress_bars()


def _class_folders(folder: Path) -> Splits:
    """Splits from SPLIT/CLASS/IMAGE; a split without class folders has no labels and is left out.

    `load_dataset` reads such folders too, but puts images of a class named "train" or "test" into
    the split of that name, and takes minutes for each start with the images of ImageNet.
    """
    files.check_name(folder)
    classes = _subfolders(folder / "train")
    splits = [name for name in ("train", *_TEST_SPLITS) if _subfolders(folder / name)]
    return {name: _class_folder_split(folder / name, classes) for name in splits}


def _class_folder_split(folder: Path, classes: list[str]) -> datasets.Dataset:
    if unknown := sorted(set(_subfolders(folder)) - set(classes)):
        raise ValueError(f"{folder / unknown[0]} is a class without a folder among train's.")
    suffixes = Image.registered_extensions()
    paths, labels = [], []
    for label, name in enumerate(classes):
        entries = sorted(os.listdir(folder / name)) if (folder / name).is_dir() else []
        images = [entry for entry in entries if os.path.splitext(entry)[1].lower() in suffixes]
        paths += [os.path.join(folder, name, image) for image in images]
        labels += [label] * len(images)
    for path in paths:
        files.check_name(path)
    return datasets.Dataset.from_dict(
        {"image": paths, "label": labels},
        features=datasets.Features(
            {"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=classes)}
        ),
    )


def _subfolders(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        shown = [entry for entry in entries if not entry.name.startswith(".")]
    for entry in shown:
        files.check_name(entry.path)
        if entry.is_symlink() and not os.path.exists(entry):
            raise ValueError(f"{entry.path} {files.fault(entry.path)}.")
    return sorted(entry.name for entry in shown if entry.is_dir())


def _image_column(features: Mapping[str, Any], source: str | Path) -> str:
    columns = [name for name, feature in features.items() if _is_image(feature)]
    if len(columns) != 1:
        raise ValueError(
            f"{source} has {_listed(columns, 'image column')} among its columns "
            f"{', '.join(features)}; one is expected."
        )
    return columns[0]


def _label_column(features: Mapping[str, Any], source: str | Path, label: str | None) -> str:
    named = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    # Numbers without class names are second choice: they may count anything.
    numbers = [name for name, feature in features.items() if _is_integer(feature)]
    columns = named + numbers if label else named or numbers
    if label in columns:
        return label
    if label is None and len(columns) == 1:
        return columns[0]
    asked = "" if label is None else f"label={label!r} is no label column: "
    advice = "choose one with label=" if columns else "class labels or integers are expected"
    raise ValueError(
        f"{asked}{source} has {_listed(columns, 'label column')} among its columns "
        f"{', '.join(features)}; {advice}."
    )


def _listed(columns: list[str], kind: str) -> str:
    count = f"{len(columns) or 'no'} {kind}{'' if len(columns) == 1 else 's'}"
    return f"{count} ({', '.join(columns)})" if columns else count


def _is_image(feature: Any) -> bool:
    """An image, or how parquet stores one when nothing says that it is an image."""
    if isinstance(feature, Mapping) and set(feature) == {"bytes", "path"}:
        return getattr(feature["bytes"], "dtype", None) in ("binary", "large_binary")
    return isinstance(feature, datasets.Image)


def _is_integer(feature: Any) -> bool:
    return isinstance(feature, datasets.Value) and "int" in feature.dtype


def _undecoded(split: datasets.Dataset, image_column: str, label_column: str) -> datasets.Dataset:
    if isinstance(split.features[image_column], datasets.Image):
        split = split.cast_column(image_column, datasets.Image(decode=False))
    split = split.select_columns([image_column, label_column])
    return split.rename_columns({image_column: "image", label_column: "label"})


def _labels(rows: datasets.Dataset) -> Int[np.ndarray, " n"]:
    column = rows.data.column("label").cast("int64")
    labels: Int[np.ndarray, " n"] = column.fill_null(_UNLABELLED).to_numpy()
    return labels


def _labelled_test_split(rows: Splits, source: str | Path) -> dict[str, datasets.Dataset]:
    for name in _TEST_SPLITS:
        if name in rows and (_labels(rows[name]) != _UNLABELLED).all():
            return {name: rows[name]}
    raise FileNotFoundError(
        f"{source} has no test split with labels: one of {', '.join(_TEST_SPLITS)} is expected "
        f"beside train; there is {', '.join(rows)}."
    )


def _num_classes(feature: Any, chosen: Splits, source: str | Path) -> int:
    """As many as have names, else one more than the largest label."""
    for name, rows in chosen.items():
        if not len(rows):
            raise ValueError(f"the {name} split of {source} is empty.")
    highest = max(int(_labels(rows).max()) for rows in chosen.values())
    num_classes = getattr(feature, "num_classes", None) or min(highest + 1, _MOST_CLASSES)
    for name, rows in chosen.items():
        check_labels(_labels(rows), num_classes, f"the {name} split of {source}")
    return int(num_classes)


def _decode_all(split: Records, image_size: int | None) -> Split:
    def decode(index: int) -> tuple[UInt8[np.ndarray, "height width channels"], int]:
        image, label = split[index]
        if image_size is not None:
            image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BICUBIC)
        pixels = np.asarray(image)
        return pixels.reshape(*pixels.shape[:2], -1), label

    def fill(indices: range) -> None:
        for index in indices:
            pixels, labels[index] = decode(index)
            _check_same_size(images.shape[1:], pixels.shape, f"image {index} of {split}")
            images[index] = pixels

    first, _ = decode(0)
    try:
        images = np.empty((len(split), *first.shape), np.uint8)
    except MemoryError as error:
        raise ValueError(
            f"the {len(split)} images of {split} take {first.nbytes * len(split):,} bytes, which "
            "are not to be had: pass a smaller image_size, or read them as a stream."
        ) from error
    labels = np.empty(len(split), np.int32)
    everything = range(len(split))
    blocks = (everything[i : i + _BLOCK] for i in everything[::_BLOCK])
    with ThreadPoolExecutor() as pool:
        list(pool.map(fill, blocks))
    return Split(images, labels)


def _check_same_size(first: tuple[int, ...], other: tuple[int, ...], name: str) -> None:
    if first != other:
        sizes = ["×".join(map(str, shape)) for shape in (first, other)]
        raise ValueError(
            f"images of {' and '.join(sizes)} (height×width×channels) do not fit into one array, "
            f"the second being {name}: pass image_size to bring all to one size."
        )


def texts(
    name: str, subset: str | None = None, *, columns: Sequence[str] = (), label: str | None = None
) -> dict[str, list[tuple[str, str | None, Any]]]:
    """The texts of a data set on the hub, by split: (text, the other one of a pair, label).

    A split for testing whose labels are not known is left out.

    Args:
      name: OWNER/NAME.
      subset: of it, such as one of GLUE's tasks; None for the only one.
      columns: of the text, or of both; by default "text", or the only ones that hold texts.
      label: the column of labels; None for "label", where there is one.

    Raises:
      ValueError, FileNotFoundError, ConnectionError: as `records`.
    """
    found = {}
    for split, rows in _from_hub(name, subset).items():
        features = rows.features
        chosen = tuple(columns) or _text_columns(features, name)
        label_column = label or ("label" if "label" in features else None)
        if missing := {*chosen, label_column} - {None, *features}:
            raise ValueError(
                f"{name} has no column {', '.join(map(str, missing))}, only {', '.join(features)}."
            )
        labels: Sequence[Any] = rows[label_column] if label_column else [None] * len(rows)
        names = getattr(features.get(label_column), "names", None)
        if names is not None:
            labels = [names[i] if i is not None and 0 <= i < len(names) else None for i in labels]
        known = label_column is None or None not in set(labels)
        word = _SPLIT_WORD.search(f"{split}.")
        if word is None or not known or _SPLIT_WORDS[word[1]] in found:
            continue
        pair = [rows[column] for column in chosen]
        seconds: Sequence[str | None] = pair[1] if len(pair) > 1 else [None] * len(rows)
        found[_SPLIT_WORDS[word[1]]] = list(zip(pair[0], seconds, labels, strict=True))
    return found


def _text_columns(features: Mapping[str, Any], source: str) -> tuple[str, ...]:
    if "text" in features:
        return ("text",)
    columns = [c for c, feature in features.items() if getattr(feature, "dtype", "") == "string"]
    if len(columns) not in (1, 2):
        raise ValueError(
            f"{source} has {_listed(columns, 'column of texts')} among its columns "
            f"{', '.join(features)}; one is expected, or two."
        )
    return tuple(columns)
