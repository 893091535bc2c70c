"""Texts by split, tokens and arrays, on small files written here; what is wrong is named."""

import json
from pydoc_data import topics

import datasets
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from zosam_jax import data
from zosam_jax.data import glue, packing, texts, tokenization
from zosam_jax.data.texts import Row, Texts

BYTES = data.tokenizer(None)


def written(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def in_lines(rows):
    return "".join(f"{json.dumps(row)}\n" for row in rows)


# ---------------------------------------------------------------------------- what Python brings


def test_the_topics_are_shared_out_whole_and_always_alike():
    found, again = texts.topics(), texts.topics()
    assert found == again
    rows = [row.text for split in found.splits.values() for row in split]
    assert sorted(rows) == sorted(set(topics.topics.values()))
    letters = {s: sum(len(r.text) for r in split) for s, split in found.splits.items()}
    assert 0.05 < letters["test"] / sum(letters.values()) <= 0.1
    assert 0.05 < letters["validation"] / sum(letters.values()) <= 0.1


def test_no_docstring_stands_in_two_splits_or_two_classes():
    found = texts.docstrings()
    assert found == texts.docstrings()
    words = [" ".join(r.text.lower().split()) for split in found.splits.values() for r in split]
    assert len(words) == len(set(words)) > 1000
    for split in found.splits.values():
        assert {row.label for row in split} == set(range(len(found.class_names)))


# -------------------------------------------------------------------------------------- files


def test_a_text_file_is_cut_at_ends_of_lines(tmp_path):
    lines = [f"line {n}\n" for n in range(100)]
    found = data.load_texts("a.txt", written(tmp_path / "a.txt", "".join(lines)).parent)
    parts = [found.splits[s][0].text for s in ("train", "validation", "test")]
    assert "".join(parts) == "".join(lines)
    assert [part.count("\n") for part in parts] == [80, 10, 10]


def test_json_lines_have_texts_pairs_and_labels(tmp_path):
    rows = [{"text": f"t{n}", "second": "s", "label": "ba"[n % 2]} for n in range(20)]
    path = written(tmp_path / "a.jsonl", in_lines(rows))
    found = data.load_texts(str(path))
    assert found.class_names == ("a", "b")
    everything = [row for split in found.splits.values() for row in split]
    assert sorted(everything) == sorted(Row(f"t{n}", "s", 1 - n % 2) for n in range(20))
    assert {s: len(split) for s, split in found.splits.items()} == {
        "train": 16,
        "validation": 2,
        "test": 2,
    }


def test_a_folder_has_splits_of_classes_or_files_to_share_out(tmp_path):
    for split in ("train", "test"):
        for name in ("good", "bad"):
            written(tmp_path / "splits" / split / name / "1.txt", f"{split} {name}")
    found = data.load_texts("folder", tmp_path / "splits")
    assert found.class_names == ("bad", "good")
    assert found.splits["test"] == [Row("test bad", None, 0), Row("test good", None, 1)]

    written(tmp_path / "named" / "train.jsonl", in_lines([{"text": "a", "label": 0.5}]))
    written(tmp_path / "named" / "dev.jsonl", in_lines([{"text": "b", "label": 2}]))
    found = data.load_texts("folder", tmp_path / "named")
    assert found == Texts(
        str(tmp_path / "named"),
        {"train": [Row("a", None, 0.5)], "test": [Row("b", None, 2)]},
    )

    for n in range(20):
        written(tmp_path / "many" / "deep" / f"{n}.txt", f"text {n}")
    assert len(data.load_texts("folder", tmp_path / "many").splits["train"]) == 16


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "a.txt",
            b"fine\n" * 20 + b"caf\xe9",
            r"a.txt is not UTF-8: byte 103, in line 21, is 0xe9",
        ),
        ("a.txt", " \n", "a.txt is empty"),
        ("a.txt", "one line" * 50, "a.txt has a text of 1 lines"),
        ("a.jsonl", '{"text": "a"}\n{"text": 3}\n', 'line 2 is no object with a "text"'),
        ("a.jsonl", '{"text": "a"\n', "line 1 is no JSON"),
        ("a.jsonl", in_lines([{"text": "a", "label": -1}] * 20), "a.jsonl has labels from -1"),
        (
            "a.jsonl",
            in_lines([{"text": "a", "label": 10**6}] * 20),
            "labels from 1000000 to 1000000",
        ),
        ("a.jsonl", in_lines([{"text": "a", "label": "x"}, {"text": "b"}]), "some have none"),
        ("a.jsonl", in_lines([{"text": "a", "label": "x"}] * 3), "has 3 texts: 10 are needed"),
        ("a.jsonl", in_lines([{"text": "a", "label": [1]}]), "label of another type"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(name, content, said, tmp_path):
    written(tmp_path / name, content)
    with pytest.raises(ValueError, match=said):
        data.load_texts(name, tmp_path)


def test_other_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match="dataset='digits' is no text; choose one of python-top"):
        data.load_texts("digits")
    with pytest.raises(ValueError, match="dataset='cats' is not known; choose one of 'cola'"):
        data.load_texts("glue:cats")
    with pytest.raises(ValueError, match="pass --data-dir"):
        data.load_texts("folder")
    with pytest.raises(FileNotFoundError, match="holds no texts"):
        data.load_texts("folder", tmp_path)
    with pytest.raises(ValueError, match="does not exist"):
        data.load_texts("a.txt", tmp_path)


# --------------------------------------------------------------------------------------- GLUE

MNLI = (
    "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\t"
    "sentence1_parse\tsentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label\n"
)
TSV = {
    "cola": ('gj04\t1\t\tThey run.\ngj04\t0\t*\tRun they "quick.\n', [("They run.", None, 1)]),
    "sst2": ("sentence\tlabel\nhide new secretions \t0\n", [("hide new secretions ", None, 0)]),
    "mrpc": (
        '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\tA "b\t"C\n',
        [('A "b', '"C', 1)],
    ),
    "qqp": (
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n0\t1\t2\tWhy?\tHow?\t0\ntorn\n",
        [("Why?", "How?", 0)],
    ),
    "stsb": (
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
        "0\tg\tf\ty\t1\tn\tn\tA.\tB.\t3.25\n",
        [("A.", "B.", 3.25)],
    ),
    "mnli": (MNLI + "0\t1\t1n\tg\tp\tp\tp\tp\tA.\tB.\tneutral\tneutral\n", [("A.", "B.", 1)]),
    "qnli": (
        "index\tquestion\tsentence\tlabel\n0\tWho?\tNobody.\tnot_entailment\n",
        [("Who?", "Nobody.", 1)],
    ),
    "rte": ("index\tsentence1\tsentence2\tlabel\n0\tA.\tB.\tentailment\n", [("A.", "B.", 0)]),
}


@pytest.mark.parametrize("task", glue.TASKS)
def test_glue_in_the_format_that_it_is_handed_out_in(task, tmp_path):
    content, rows = TSV[task]
    for name in ("train", glue.TASKS[task].test[0]):
        written(tmp_path / f"{name}.tsv", content)
    found = data.load_texts(f"glue:{task}", tmp_path)
    assert found.splits["train"][: len(rows)] == [Row(*row) for row in rows]
    assert found.splits["test"] == found.splits["train"]
    assert (found.class_names is None) == (task == "stsb")


def test_glue_files_of_another_format_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no train.tsv of glue:rte"):
        data.load_texts("glue:rte", tmp_path)
    written(tmp_path / "train.tsv", "a\tb\n")
    with pytest.raises(ValueError, match="lacks one of the columns sentence1, sentence2, label"):
        data.load_texts("glue:rte", tmp_path)
    written(tmp_path / "train.tsv", TSV["rte"][0] + "1\tC.\tD.\tmaybe\n")
    with pytest.raises(ValueError, match=r"train.tsv: line 3 has the label 'maybe', where entail"):
        data.load_texts("glue:rte", tmp_path)
    written(tmp_path / "train.tsv", TSV["rte"][0] + "torn\n" * 3)
    with pytest.raises(ValueError, match="line 4 has 1 columns"):
        data.load_texts("glue:rte", tmp_path)


def on_the_hub(monkeypatch, **splits):
    """What load_dataset would give; the names that it was asked for go into the list."""
    asked = []

    def load_dataset(*names):
        asked.append(names)
        return splits

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_glue_and_others_from_the_hub(monkeypatch):
    features = datasets.Features(
        {
            "question": datasets.Value("string"),
            "sentence": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["entailment", "not_entailment"]),
            "idx": datasets.Value("int32"),
        }
    )

    def rows(*labels):
        n = len(labels)
        columns = {"question": ["q"] * n, "sentence": ["s"] * n, "label": labels, "idx": range(n)}
        return datasets.Dataset.from_dict({k: list(v) for k, v in columns.items()}, features)

    asked = on_the_hub(monkeypatch, train=rows(1, 0), validation=rows(1), test=rows(-1))
    found = data.load_texts("glue:qnli")
    assert asked == [("hf://datasets/nyu-mll/glue", "qnli")]
    assert found.splits == {
        "train": [Row("q", "s", 1), Row("q", "s", 0)],
        "test": [Row("q", "s", 1)],
    }
    assert found.class_names == ("entailment", "not_entailment")
    # Without a name of ours, both columns of texts are a pair.
    assert data.load_texts("hub:a/b").splits == found.splits


# ------------------------------------------------------------------------------------- tokens


def word_piece():
    made = tokenizers.Tokenizer(
        tokenizers.models.WordPiece(
            {
                w: n
                for n, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##b"])
            },
            unk_token="[UNK]",
        )
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.decoder = tokenizers.decoders.WordPiece()
    made.add_special_tokens(["[PAD]", "[CLS]", "[SEP]", "[MASK]"])
    return made


def test_bytes_are_tokens_and_back():
    text = "Grüße 🙂\0"
    assert BYTES.decode(BYTES.encode(text).tolist()) == text
    assert bytes(BYTES.encode(text).tolist()) == text.encode()
    assert {BYTES.start, BYTES.separator, BYTES.mask} == {256, 257, 258}
    assert BYTES.size == 259


def test_a_tokenizer_of_a_file(tmp_path):
    path = tmp_path / "tokenizer.json"
    made = word_piece()
    made.enable_truncation(2)
    made.enable_padding(length=9)
    made.save(str(path))
    found = tokenization.read(path)
    assert (found.size, found.start, found.separator, found.mask) == (7, 2, 3, 4)
    assert found.encode("ab a ab").tolist() == [5, 6, 5, 5, 6]
    assert found.decode([2, 5, 6, 5, 3]) == "ab a"
    again = data.tokenizer(found.content)
    assert again.encode("ab").tolist() == [5, 6]


def test_gpt2s_tokenizer_ends_texts_by_its_one_special_token():
    made = tokenizers.Tokenizer(tokenizers.models.BPE({"<|endoftext|>": 0, "a": 1}, []))
    made.add_special_tokens(["<|endoftext|>"])
    found = data.tokenizer(made.to_str())
    assert (found.separator, found.start, found.mask) == (0, 0, None)


def test_a_file_that_is_no_tokenizer_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"tokenizer='.*none.json' does not exist"):
        tokenization.read(tmp_path / "none.json")
    with pytest.raises(ValueError, match=r"a.json is no tokenizer.json"):
        tokenization.read(written(tmp_path / "a.json", "{}"))
    with pytest.raises(ValueError, match=r"a.json is no tokenizer.json: it is not UTF-8"):
        tokenization.read(written(tmp_path / "a.json", b"\xff"))
    bare = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0}, []))
    with pytest.raises(ValueError, match=r"has none of the tokens \[SEP\]"):
        data.tokenizer(bare.to_str())


# ------------------------------------------------------------------------------------- arrays

ABC = Texts(
    "abc",
    {"train": [Row("abcdefgh"), Row("ij")], "validation": [Row("k" * 9)], "test": [Row("é" * 9)]},
)


def test_blocks_go_on_where_the_one_before_ended():
    found = data.next_tokens(ABC, BYTES, 4)
    end = BYTES.separator
    tokens = [*b"abcdefgh", end, *b"ij", end]
    assert found.train.images.tolist() == [tokens[0:4], tokens[4:8]]
    assert found.train.labels.tolist() == [tokens[1:5], tokens[5:9]]
    assert found.text.bytes_a_token == 18 / 19
    assert found.num_classes == 259
    with pytest.raises(ValueError, match="the validation split of abc has 10 tokens, and one bl"):
        data.next_tokens(ABC, BYTES, 10)


def test_the_fingerprint_is_of_all_texts():
    prints = {data.next_tokens(ABC, BYTES, 4).text.fingerprint for _ in range(2)}
    other = ABC._replace(splits={**ABC.splits, "test": [Row("é" * 8 + "e")]})
    assert len({*prints, data.next_tokens(other, BYTES, 4).text.fingerprint}) == 2


def test_gaps_are_as_many_in_each_block_and_never_at_its_start():
    blocks = jnp.tile(jnp.arange(100, dtype=jnp.int32), (400, 1))
    inputs, targets = packing.with_gaps(blocks, jax.random.key(0), 258, 259)
    gaps = np.asarray(targets) >= 0
    assert (gaps.sum(axis=1) == 15).all()
    assert not gaps[:, 0].any()
    assert (np.asarray(targets)[gaps] == np.asarray(blocks)[gaps]).all()
    assert (np.asarray(inputs)[~gaps] == np.asarray(blocks)[~gaps]).all()
    in_gaps = np.asarray(inputs)[gaps]
    assert abs(np.mean(in_gaps == 258) - 0.8) < 0.02
    assert abs(np.mean(in_gaps == np.asarray(blocks)[gaps]) - 0.1) < 0.02
    # Every place is as likely to be a gap as any other.
    assert np.ptp(gaps.mean(axis=0)[1:]) < 0.12


def test_what_is_held_out_has_the_same_gaps_always_and_training_none():
    found, again = (data.masked_tokens(ABC, BYTES, 5) for _ in range(2))
    np.testing.assert_array_equal(found.test.images, again.test.images)
    assert (found.train.images == found.train.labels).all()
    assert (found.train.images[:, 0] == BYTES.start).all()
    assert (np.sum(found.test.labels >= 0, axis=1) == 1).all()
    no_mask = tokenizers.Tokenizer(tokenizers.models.BPE({"</s>": 0}, []))
    with pytest.raises(ValueError, match=r"the tokenizer has no token \[MASK\]"):
        data.masked_tokens(ABC, data.tokenizer(no_mask.to_str()), 5)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (Row("ab"), [256, 97, 98, 257, -1, -1, -1, -1]),
        (Row("abcdefghij"), [256, *b"abcdef", 257]),
        (Row("ab", "c"), [256, 97, 98, 257, 99, 257, -1, -1]),
        (Row("abcdef", "ghijkl"), [256, *b"ab", 257, *b"ghi", 257]),
        (Row("a", "ghijkl"), [256, *b"a", 257, *b"ghij", 257]),
        (Row("abcdef", "g"), [256, *b"abcd", 257, *b"g", 257]),
        (Row("", ""), [256, 257, 257, -1, -1, -1, -1, -1]),
    ],
)
def test_rows_are_cut_where_they_are_too_long_and_filled_up(row, expected):
    assert packing.of_row(row, BYTES, 8).tolist() == expected


def test_labels_are_classes_or_scores():
    classes = Texts(
        "c",
        {s: [Row("abcdefghij", None, 1), Row("a", None, 0)] for s in ("train", "test")},
        ("x", "y"),
    )
    found = data.labelled(classes, BYTES, 8)
    assert (found.train.labels.dtype, found.num_classes) == (np.int32, 2)
    assert found.class_names == ("x", "y")
    assert found.text.shortened == 0.5
    scores = data.labelled(classes._replace(class_names=None), BYTES, 8)
    assert (scores.train.labels.dtype, scores.num_classes) == (np.float32, 1)
    with pytest.raises(ValueError, match="abc has no labels"):
        data.labelled(ABC, BYTES, 8)
