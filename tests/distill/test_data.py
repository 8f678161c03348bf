from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from distill import DataError, Splits, TaskConfig, batches, load, tokenize
from distill.batching import plan
from distill.metrics import accuracy, agreement, divergence, kl, pearson


def write(path: Path, text: str) -> str:
    path.write_bytes(text.encode("latin-1"))
    return str(path)


def trec(tmp_path: Path) -> dict[str, object]:
    lines = [f"{'AB'[i % 2]}:fine what is number {i} caf\xe9 ?" for i in range(300)]
    source = write(tmp_path / "t.txt", "\n".join(lines + lines[:20]) + "\n")
    return {
        "source": source,
        "format": "lines",
        "pattern": r"(?P<label>[A-Z]+):\S+ (?P<text>.*)",
        "encoding": "latin-1",
    }


def test_lines_are_split_by_hash_without_duplicates(tmp_path: Path) -> None:
    task = trec(tmp_path)
    splits = load(task)
    parts = [list(part["text"]) for part in (splits.train, splits.validation, splits.test)]
    assert sum(map(len, parts)) == 300 == len(set(sum(parts, [])))
    assert splits.label_names == ("A", "B") and splits.num_labels == 2
    assert all(10 < len(part) for part in parts) and "caf\xe9" in parts[0][0]
    # The split of a text does not depend on the rest of the file.
    half = Path(str(task["source"])).read_bytes().split(b"\n")[:150]
    Path(str(task["source"])).write_bytes(b"\n".join(half))
    again = load(task)
    assert set(again.test["text"]) <= set(parts[2]) and set(again.train["text"]) <= set(parts[0])
    assert list(load({**task, "seed": 1}).test["text"]) != list(again.test["text"])
    assert len(load({**task, "limit": 5}).train) == 5


def test_tables_and_regression(tmp_path: Path) -> None:
    rows = "\n".join(f"{i}\t{(i % 9) - 4}.5\tIt's \"number {i}\x85 here" for i in range(200))
    source = write(tmp_path / "t.tsv", "id\tscore\ttext\n" + rows + "\n")
    task = {"source": source, "format": "tsv", "label": "score", "quoting": False, "encoding": "latin-1"}
    scores = load({**task, "kind": "regression"})
    assert scores.num_labels == 1 and isinstance(scores.train["label"][0], float)
    signs = load({**task, "threshold": 0.0})
    assert signs.label_names == ("negative", "positive")
    total = sum(len(part) for part in (signs.train, signs.validation, signs.test))
    assert total == 200


def test_errors_name_the_place_and_what_is_there(tmp_path: Path) -> None:
    table = write(tmp_path / "t.csv", "a,b\n1,2\n")
    with pytest.raises(DataError, match="no column 'text'; columns present: a, b"):
        load({"source": table})
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
    with pytest.raises(DataError, match="too few fields"):
        load({"source": write(tmp_path / "s.csv", "text,label\nx\n")})


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
