import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from distill import DataError, Splits, TaskConfig, batches, load, tokenize
from distill.batching import plan
from distill.data import align
from distill.metrics import accuracy, agreement, divergence, kl, pearson


def write(path: Path, text: str) -> str:
    path.write_bytes(text.encode("latin-1"))
    return str(path)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands for the hub here is read through the hub's code, whose cache must not outlive the test."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hub_cache"))


def trec(tmp_path: Path) -> dict[str, object]:
    lines = [f"{'AB'[i % 2]}:fine what is number {i} caf\xe9 ?" for i in range(300)]
    source = write(tmp_path / "t.txt", "\n".join(lines + lines[:20]) + "\n")
    return {
        "source": source,
        "format": "lines",
        "pattern": r"(?P<label>[A-Z]+):\S+ (?P<text>.*)",
        "encoding": "latin-1",
    }


def texts(part: Dataset | None) -> list[str]:
    assert part is not None
    return list(part["text"])


def rows(name: str, count: int, hidden: bool = False) -> dict[str, list[Any]]:
    """Texts that name their split and their class."""
    labels = [index % 2 for index in range(count)]
    return {
        "sentence": [f"{name} {index} of class {label}" for index, label in enumerate(labels)],
        "label": [-1] * count if hidden else labels,
        "idx": list(range(count)),
    }


CLASSES = Features(
    {"sentence": Value("string"), "label": ClassLabel(names=["no", "yes"]), "idx": Value("int64")}
)


def glue(test_hidden: bool = True) -> DatasetDict:
    """The shape of a GLUE task: official splits, class labels, the test split's withheld."""
    return DatasetDict(
        train=Dataset.from_dict(rows("train", 60), features=CLASSES),
        validation=Dataset.from_dict(rows("validation", 40), features=CLASSES),
        test=Dataset.from_dict(rows("test", 30, hidden=test_hidden), features=CLASSES),
    )


def test_lines_are_split_by_hash_without_duplicates(tmp_path: Path) -> None:
    task = trec(tmp_path)
    splits = load(task)
    parts = [list(part["text"]) for part in (splits.train, splits.validation, splits.test)]
    assert sum(map(len, parts)) == 300 == len(set(sum(parts, [])))
    assert splits.label_names == ("A", "B") and splits.num_labels == 2
    assert all(10 < len(part) for part in parts) and "caf\xe9" in parts[0][0]
    assert "20 repeated training texts are left out" in splits.notes
    # The split of a text does not depend on the rest of the file.
    half = Path(str(task["source"])).read_bytes().split(b"\n")[:150]
    Path(str(task["source"])).write_bytes(b"\n".join(half))
    again = load(task)
    assert set(again.test["text"]) <= set(parts[2]) and set(again.train["text"]) <= set(parts[0])
    assert list(load({**task, "seed": 1}).test["text"]) != list(again.test["text"])
    assert len(load({**task, "limit": 5}).train) == 5


def test_tables_and_regression(tmp_path: Path) -> None:
    content = "\n".join(f"{i}\t{(i % 9) - 4}.5\tIt's \"number {i}\x85 here" for i in range(200))
    source = write(tmp_path / "t.tsv", "id\tscore\ttext\n" + content + "\n")
    task = {"source": source, "label": "score", "quoting": False, "encoding": "latin-1"}
    scores = load({**task, "kind": "regression"})
    assert scores.num_labels == 1 and isinstance(scores.train["label"][0], float)
    assert all(text.startswith("It's \"number ") and "\x85" in text for text in scores.train["text"])
    signs = load({**task, "threshold": 0.0})
    assert signs.label_names == ("negative", "positive")
    total = sum(len(part) for part in (signs.train, signs.validation, signs.test))
    assert total == 200
    with pytest.raises(DataError, match="is a number, not a class; give `threshold`"):
        load(task)


def test_a_table_keeps_what_stands_in_its_fields(tmp_path: Path) -> None:
    """Texts that look like missing values or numbers stay texts; a row without label is no class."""
    lines = [f"{text},{i % 12}" for i, text in enumerate(["NA", "None", "007", "1.0", '"a, b"'] * 20)]
    lines = [line.replace(",", f" {i},", 1) if '"' not in line else line for i, line in enumerate(lines)]
    source = write(tmp_path / "t.csv", "text,label\nNA,1\n007,0\n" + "\n".join(lines) + "\nwithout,\nalone\n")
    splits = load({"source": source, "validation": 0.2, "test": 0.2})
    every = texts(splits.train) + texts(splits.validation) + texts(splits.test)
    assert {"NA", "007", "a, b"} <= set(every) and "without" not in every
    assert splits.label_names == tuple(str(n) for n in range(12)), "numbers in the order of their size"
    assert sorted(texts(splits.unlabelled)) == ["alone", "without"]
    assert splits.unlabelled is not None and splits.unlabelled.column_names == ["text"]


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_other_files(tmp_path: Path, kind: str) -> None:
    table = Dataset.from_dict(
        {
            "review": [f"review {i}" for i in range(100)],
            "category": [["bad", "good", None][i % 3] for i in range(100)],
        }
    )
    path = tmp_path / f"t.{kind}"
    if kind == "parquet":
        table.to_parquet(str(path))
    elif kind == "jsonl":
        table.to_json(str(path), lines=True)
    else:
        path.write_text(json.dumps(table.to_list()))
    splits = load({"source": str(path)})
    assert splits.label_names == ("bad", "good")
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 67
    assert splits.unlabelled is not None and len(splits.unlabelled) == 33
    assert "columns: text 'review', label 'category' (by their names)" in splits.notes
    for part in (splits.train, splits.validation, splits.test):
        assert all(
            int(t.split()[1]) % 3 == label for t, label in zip(part["text"], part["label"], strict=True)
        )


def saved(data: DatasetDict, folder: Path) -> str:
    data.save_to_disk(str(folder))
    return str(folder)


def parquets(data: DatasetDict, folder: Path) -> str:
    folder.mkdir()
    for name, table in data.items():
        table.to_parquet(str(folder / f"{name}.parquet"))
    return str(folder)


def on_the_hub(data: DatasetDict, folder: Path) -> str:
    return "hub:" + parquets(data, folder)


@pytest.mark.parametrize("place", [saved, parquets, on_the_hub])
def test_official_splits_stay_and_hidden_labels_are_no_class(
    place: Callable[[DatasetDict, Path], str], tmp_path: Path
) -> None:
    data = glue()
    data["train"] = datasets.concatenate_datasets(
        [data["train"], Dataset.from_dict(rows("unlabelled", 8, hidden=True), features=CLASSES)]
    )
    splits = load({"source": place(data, tmp_path / "d")})
    assert splits.label_names == ("no", "yes") and set(splits.train["label"]) == {0, 1}
    assert sorted(texts(splits.train)) == sorted(rows("train", 60)["sentence"])
    assert sorted(texts(splits.unlabelled)) == sorted(rows("unlabelled", 8)["sentence"])
    # The test split's labels are withheld: a part of validation stands in for it, the training split is whole.
    assert all(text.startswith("validation") for text in texts(splits.validation) + texts(splits.test))
    assert (
        len(splits.validation) + len(splits.test) == 40 and min(len(splits.validation), len(splits.test)) > 9
    )
    assert "the official test split has no labels: it is left out" in splits.notes
    assert any(note.startswith("split off from validation by a hash of the text:") for note in splits.notes)
    for part in (splits.train, splits.validation, splits.test):
        for text, label in zip(part["text"], part["label"], strict=True):
            assert text.endswith(f"class {label}")


def test_official_validation_and_test_are_used(tmp_path: Path) -> None:
    splits = load({"source": parquets(glue(test_hidden=False), tmp_path / "d")})
    for name, part in (("train", splits.train), ("validation", splits.validation), ("test", splits.test)):
        assert sorted(texts(part)) == sorted(rows(name, len(part))["sentence"])
    assert not any("split off" in note for note in splits.notes)


def test_a_missing_validation_split_comes_from_training(tmp_path: Path) -> None:
    data = glue(test_hidden=False)
    del data["validation"]
    splits = load({"source": saved(data, tmp_path / "d"), "validation": 0.3})
    assert len(splits.test) == 30 and all(text.startswith("test") for text in texts(splits.test))
    assert all(text.startswith("train") for text in texts(splits.train) + texts(splits.validation))
    assert len(splits.train) + len(splits.validation) == 60 and 5 < len(splits.validation) < 35


@pytest.mark.parametrize("test_hidden", [False, True])
def test_no_text_is_in_two_splits(tmp_path: Path, test_hidden: bool) -> None:
    """A text of the test split is in no other; one of validation not in training; the test split stays whole."""
    data = glue(test_hidden)
    shared = Dataset.from_dict(
        {name: values[:10] for name, values in rows("test", 30).items()}, features=CLASSES
    )
    other = Dataset.from_dict({n: v[:6] for n, v in rows("validation", 40).items()}, features=CLASSES)
    data["train"] = datasets.concatenate_datasets([data["train"], shared, other, other])
    data["validation"] = datasets.concatenate_datasets([data["validation"], shared])
    splits = load({"source": saved(data, tmp_path / "d")})
    train, validation, test = map(texts, (splits.train, splits.validation, splits.test))
    assert not set(train) & set(test) and not set(validation) & set(test) and not set(train) & set(validation)
    if not test_hidden:
        assert len(test) == 30 and len(validation) == 40 and len(train) == 60
        assert "16 train texts that a later split has too are left out" in splits.notes


def test_configurations_and_split_names(tmp_path: Path) -> None:
    """A hub data set with two configurations and two validation splits, as MNLI in GLUE."""
    folder = tmp_path / "tasks"
    for config, count in (("small", 30), ("large", 90)):
        (folder / config).mkdir(parents=True)
        for split in ("train", "validation_matched", "validation_mismatched"):
            Dataset.from_dict(rows(f"{config} {split}", count)).to_parquet(
                str(folder / config / f"{split}.parquet")
            )
    listed = "".join(
        f"- config_name: {config}\n  data_files:\n"
        + "".join(
            f"  - split: {split}\n    path: {config}/{split}.parquet\n"
            for split in ("train", "validation_matched", "validation_mismatched")
        )
        for config in ("small", "large")
    )
    (folder / "README.md").write_text(f"---\nconfigs:\n{listed}---\n")
    task = {"source": f"hub:{folder}", "config": "large", "splits": {"validation": "validation_matched"}}
    splits = load(task)
    assert len(splits.train) == 90 and all(text.startswith("large train") for text in texts(splits.train))
    assert all("validation_matched" in text for text in texts(splits.validation) + texts(splits.test))
    assert any("left alone: validation_mismatched" in note for note in splits.notes)
    with pytest.raises(DataError, match="cannot be read: Config name is missing.*'small', 'large'"):
        load({"source": f"hub:{folder}"})
    with pytest.raises(
        DataError, match="validation_matched and validation_mismatched may be the validation split"
    ):
        load({"source": f"hub:{folder}", "config": "small"})
    with pytest.raises(DataError, match="no split 'validation_mached'; did you mean 'validation_matched'"):
        load({**task, "splits": {"validation": "validation_mached"}})
    with pytest.raises(DataError, match="`config` is for data sets of the hub and directories"):
        load({**trec(tmp_path), "config": "x"})


def test_sentence_pairs_keep_both_texts(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    table = Dataset.from_dict(
        {
            "premise": [f"w{i % 40}" for i in range(120)],
            "hypothesis": [f"w{i // 3 % 40} w1" for i in range(120)],
            "label": [["a", "b"][i % 2] for i in range(120)],
        }
    )
    table.to_parquet(str(tmp_path / "p.parquet"))
    splits = load({"source": str(tmp_path / "p.parquet"), "validation": 0.2, "test": 0.2})
    assert splits.train.column_names == ["text", "text_pair", "label"]
    assert sum(len(part) for part in (splits.train, splits.validation, splits.test)) == 120, (
        "a text may recur"
    )
    tokens = tokenize(splits.train, tokenizer, 16)
    first = splits.train[0]
    pair = tokenizer(first["text"], first["text_pair"])
    assert list(tokens.columns["input_ids"][0]) == pair["input_ids"]
    assert list(tokens.columns["input_ids"][0]) != tokenizer(first["text"])["input_ids"]
    one = load({"source": str(tmp_path / "p.parquet"), "text": "hypothesis", "label": "label"})
    assert one.train.column_names == ["text", "label"]


def test_minus_one_is_a_class_only_where_it_is_said(tmp_path: Path) -> None:
    table = Dataset.from_dict({"text": [f"t{i}" for i in range(90)], "label": [i % 3 - 1 for i in range(90)]})
    path = tmp_path / "t.parquet"
    table.to_parquet(str(path))
    with pytest.raises(DataError, match=r"the label -1 stands beside 0, 1; say `hidden: \['-1'\]`"):
        load({"source": str(path)})
    assert load({"source": str(path), "hidden": []}).label_names == ("-1", "0", "1")
    splits = load({"source": str(path), "hidden": ["-1"]})
    assert splits.label_names == ("0", "1") and splits.unlabelled is not None and len(splits.unlabelled) == 30


def test_errors_name_the_place_and_what_is_there(tmp_path: Path) -> None:
    table = write(tmp_path / "t.csv", "a,b\n1,2\n")
    with pytest.raises(
        DataError, match="none is named as a text usually is; give `text`.*columns present: a, b"
    ):
        load({"source": table})
    with pytest.raises(DataError, match="no column 'txt'; columns present: a, b"):
        load({"source": table, "text": "txt"})
    with pytest.raises(DataError, match="give `label`; columns present: a, b"):
        load({"source": table, "text": "a"})
    both = write(tmp_path / "two.csv", "sentence1,sentence2,premise,hypothesis,label\na,b,c,d,1\n")
    with pytest.raises(DataError, match="more than one may be the text"):
        load({"source": both})
    with pytest.raises(DataError, match="no such file"):
        load({"source": str(tmp_path / "nothing.csv")})
    with pytest.raises(DataError, match="package 'no-such-package' is not installed"):
        load({"source": "package:no-such-package/x.csv"})
    with pytest.raises(DataError, match="no such file"):
        load({"source": "package:torch/no/such/file.csv"})
    with pytest.raises(DataError, match="did you mean 'label'"):
        TaskConfig.from_dict({"source": table, "labl": "b"})
    with pytest.raises(DataError, match="did you mean 'lines'"):
        TaskConfig(source=table, format="line")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="groups"):
        TaskConfig(source=table, format="lines", pattern="(?P<label>.*)")
    with pytest.raises(DataError, match=":1: the line does not match"):
        load({"source": table, "format": "lines", "pattern": "(?P<label>X) (?P<text>.*)"})
    with pytest.raises(DataError, match="not a number"):
        load({"source": write(tmp_path / "n.csv", "text,label\nx,y\n"), "kind": "regression"})
    with pytest.raises(DataError, match="fractions"):
        TaskConfig(source=table, validation=0.6, test=0.5)
    with pytest.raises(DataError, match=r"only one class \(1\) and 1 labelled"):
        load({"source": write(tmp_path / "s.csv", "text,label\nx\ny,1\n")})
    with pytest.raises(DataError, match="the first row has more fields than the header"):
        load({"source": write(tmp_path / "w.csv", "text,label\nx,1,2\n")})
    with pytest.raises(DataError, match="Expected 2 fields in line 3, saw 3"):
        load({"source": write(tmp_path / "w.csv", "text,label\nx,1\nx,1,2\n")})
    with pytest.raises(DataError, match="does not say the format; give `format`, one of lines, csv"):
        load({"source": write(tmp_path / "w.tab", "text,label\nx,1\n")})
    with pytest.raises(DataError, match="is a directory, which format 'csv' cannot be"):
        load({"source": str(tmp_path), "format": "csv"})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "there is nothing in the file"),
        ("text,label\n", r"there is only a header \(text, label\)"),
        ("text,label\n1,a\n2.5,b\n-3,a\n", r"the column 'text' holds numbers only \(1, …\)"),
        ("text,label\n,a\n,b\n", "no row has a text in the column 'text'"),
        (
            "text,label\n" + "".join(f"a b {n},c{n}\n" for n in range(9)),
            "9 labelled rows have 9 different labels",
        ),
    ],
)
def test_columns_that_cannot_be_texts_or_classes_are_refused(tmp_path: Path, content: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        load({"source": write(tmp_path / "t.csv", content)})


def test_what_is_in_another_encoding_is_told_how_to_be_read(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes("text,label\ncafé,a\n".encode("latin-1"))
    with pytest.raises(DataError, match="give its `encoding`"):
        load({"source": str(tmp_path / "t.csv")})


def test_an_empty_split_says_what_became_of_its_texts(tmp_path: Path) -> None:
    rows = "text,label\n" + "".join(f"a b {n},{'xy'[n % 2]}\n" for n in range(40))
    for name in ("train", "test"):
        write(tmp_path / f"{name}.csv", rows)
    with pytest.raises(DataError, match="the train split is empty .*train texts that a later split has too"):
        load({"source": str(tmp_path)})


def test_training_texts_of_one_class_are_refused(tmp_path: Path) -> None:
    """Both classes are in the file; the few texts that are kept for training have one."""
    rows = "text,label\n" + "".join(f"word {n},{'y' if n == 3 else 'x'}\n" for n in range(200))
    with pytest.raises(DataError, match="all 2 texts of the train split have the same label"):
        load({"source": write(tmp_path / "t.csv", rows), "limit": 2})


def test_repeated_texts_with_other_labels_are_counted(tmp_path: Path) -> None:
    rows = [(f"text {n}", "xy"[n % 2]) for n in range(100)] + [
        ("text 1", "x"),
        ("text 2", "x"),
        ("text 3", "x"),
    ]
    content = "text,label\n" + "".join(f"{text},{label}\n" for text, label in rows)
    notes = load({"source": write(tmp_path / "t.csv", content)}).notes
    assert "3 repeated training texts are left out, 2 of them with another label than their first" in notes


def test_a_directory_of_tables_is_read_as_one_table_is(tmp_path: Path) -> None:
    """In the given encoding, fields as they stand, though a file has a column of its own and the test's labels are withheld."""
    for name, body in {
        "train.csv": "label,text\n" + "".join(f"00{n % 2},café {n}\n" for n in range(60)),
        "test.csv": "id,text\n" + "".join(f"{n},NA {n}\n" for n in range(10)),
    }.items():
        (tmp_path / name).write_bytes(body.encode("latin-1"))
    splits = load({"source": str(tmp_path), "encoding": "latin-1", "text": "text", "label": "label"})
    assert splits.label_names == ("000", "001")
    assert all(text.startswith("café ") for text in splits.train["text"])
    assert "the official test split has no labels: it is left out" in splits.notes


def test_a_class_that_only_the_official_test_split_has_is_refused(tmp_path: Path) -> None:
    data = glue(test_hidden=False)
    more = CLASSES.copy() | {"label": ClassLabel(names=["no", "yes", "maybe"])}
    changed = DatasetDict({name: part.cast(Features(more)) for name, part in data.items()})
    changed["test"] = Dataset.from_dict(rows("test", 30) | {"label": [2] * 30}, features=Features(more))
    with pytest.raises(DataError, match="the test split has classes that the training split has not: maybe"):
        load({"source": saved(changed, tmp_path / "d")})


def test_classes_are_numbered_as_the_model_numbers_them(splits: Splits) -> None:
    turned = align(splits, ["HIGH", "low", "middle"])
    assert turned.label_names == ("high", "low", "middle")
    for part, again in ((splits.train, turned.train), (splits.test, turned.test)):
        ours = [splits.label_names[label] for label in part["label"]]
        assert ours == [turned.label_names[label] for label in again["label"]]
    kept = align(splits, ["LABEL_0", "LABEL_1", "LABEL_2"])
    assert list(kept.train["label"]) == list(splits.train["label"]) and "LABEL_1 = middle" in kept.notes[-1]
    assert align(splits, ["low", "middle", "high"]) is splits
    with pytest.raises(DataError, match="the model has 2 classes .* the data 3"):
        align(splits, ["low", "high"])
    with pytest.raises(DataError, match="they must be the same names"):
        align(splits, ["low", "middle", "top"])


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=200),
    st.integers(1, 16),
    st.one_of(st.none(), st.integers(0, 9)),
)
def test_plan_holds_every_item_once(lengths: list[int], batch_size: int, seed: int | None) -> None:
    groups = plan(lengths, batch_size, seed, window=2)
    assert sorted(item for group in groups for item in group) == list(range(len(lengths)))
    assert all(len(group) <= batch_size for group in groups)
    assert groups == plan(lengths, batch_size, seed, window=2)


def test_batches_are_padded_and_masked(splits: Splits, tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = tokenize(splits.validation, tokenizer, 16)
    listed = list(batches(tokens, tokenizer, batch_size=8, max_length=16))
    assert sum(len(batch["labels"]) for batch in listed) == 32
    for batch in listed:
        assert batch["input_ids"].shape == batch["attention_mask"].shape
        assert torch.equal(batch["input_ids"] != 0, batch["attention_mask"] == 1)
    fixed = list(batches(splits.validation, tokenizer, 8, 16, pad="max_length", labels=False, limit=10))
    assert [tuple(batch["input_ids"].shape) for batch in fixed] == [(8, 16), (2, 16)]
    assert all("labels" not in batch for batch in fixed)


def test_metrics() -> None:
    teacher = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    student = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert accuracy(teacher, torch.tensor([0, 0])) == 0.5
    assert agreement(teacher, student) == 0.5
    assert kl(teacher, teacher) == 0.0 and kl(teacher, student) > 0.1
    expected = torch.nn.functional.kl_div(
        torch.log_softmax(student, -1), torch.log_softmax(teacher, -1), log_target=True, reduction="batchmean"
    )
    assert abs(kl(teacher, student) - float(expected)) < 1e-6
    outputs = torch.tensor([[1.0], [2.0], [3.0]])
    assert abs(pearson(outputs, torch.tensor([2.0, 4.0, 6.0])) - 1) < 1e-9
    assert divergence(outputs, outputs + 1, "regression") == pytest.approx(1.5)
