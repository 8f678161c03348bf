from collections.abc import Callable

import pytest
import torch
from transformers import BertConfig, BertModel, PreTrainedModel

from distill import Architecture, UnknownSite, UnknownVariant, UnsupportedModel, find_sites
from distill.errors import DistillError

Build = Callable[[str], PreTrainedModel]

FIRST = {
    "bert": (
        "bert.encoder.layer.0.attention.self.softmax",
        "bert.encoder.layer.0.intermediate.intermediate_act_fn",
    ),
    "roberta": (
        "roberta.encoder.layer.0.attention.self.softmax",
        "roberta.encoder.layer.0.intermediate.intermediate_act_fn",
    ),
    "distilbert": (
        "distilbert.transformer.layer.0.attention.softmax",
        "distilbert.transformer.layer.0.ffn.activation",
    ),
    "gpt2": ("transformer.h.0.attn.softmax", "transformer.h.0.mlp.act"),
    "llama": ("model.layers.0.self_attn.softmax", "model.layers.0.mlp.act_fn"),
    "vit": ("vit.layers.0.attention.softmax", "vit.layers.0.mlp.activation_fn"),
}


@pytest.mark.parametrize("family", FIRST)
def test_sites_of_each_family(family: str, build: Build) -> None:
    model = build(family)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sites = find_sites(model)
    assert [site.name for site in sites[:2]] == list(FIRST[family])
    assert len(sites) == 4 and [site.layer for site in sites] == [0, 0, 1, 1]
    softmax, activation = sites[:2]
    assert (softmax.kind, softmax.size) == ("softmax", 4)
    assert activation.kind == "activation" and activation.size == (64 if family == "gpt2" else 32)
    assert sites[0].signature == sites[2].signature != sites[1].signature
    assert softmax.variants[0] == activation.variants[0] == "exact"
    # Looking changes nothing.
    assert model.config._attn_implementation == "eager"
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_shared_layers_are_one_site(build: Build) -> None:
    assert len(find_sites(build("albert"))) == 2


def test_encoder_decoder_sites(build: Build) -> None:
    kinds = [site.kind for site in find_sites(build("t5"))]
    assert kinds.count("softmax") == 6 and kinds.count("activation") == 4


def test_norm_sites_on_request(teacher: PreTrainedModel) -> None:
    sites = find_sites(teacher, kinds=("norm",))
    assert len(sites) == 4 and all(site.size == 16 and site.variants == ("exact",) for site in sites)
    with pytest.raises(UnknownVariant, match="did you mean 'norm'"):
        find_sites(teacher, kinds=("nrom",))


def test_a_meta_model_has_sites() -> None:
    with torch.device("meta"):
        model = BertModel(BertConfig(num_hidden_layers=3))
    assert len(find_sites(model)) == 6


def test_example_inputs_replace_the_guess(teacher: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> None:
    assert [s.name for s in find_sites(teacher, example_inputs=inputs)] == [
        s.name for s in find_sites(teacher)
    ]


def test_a_model_without_the_interface_is_refused() -> None:
    from transformers import MPNetConfig, MPNetModel

    model = MPNetModel(
        MPNetConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=4, intermediate_size=32)
    )
    with pytest.raises(UnsupportedModel, match="attention interface"):
        find_sites(model)


def test_architecture_round_trip_and_key() -> None:
    first = Architecture({"b": "quad", "a": "2quad", "c": "exact"})
    second = Architecture({"a": "2quad", "b": "quad"})
    assert first == second and first.key() == second.key() and hash(first) == hash(second)
    assert Architecture.from_json(first.to_json()) == first
    assert first.variant("c") == "exact" and first.variant("a") == "2quad"
    assert Architecture({"a": "quad"}).key() != second.key()
    with pytest.raises(DistillError, match="structure"):
        Architecture({}, {"layers": [0]})
    with pytest.raises(DistillError, match="did you mean 'sites'"):
        Architecture.from_dict({"site": {}})


def test_architecture_validation_lists_every_fault(teacher: PreTrainedModel) -> None:
    sites = find_sites(teacher)
    uniform = Architecture.uniform(teacher, {"softmax": "2quad", "activation": "quad"})
    uniform.validate(teacher)
    assert set(uniform.sites) == {site.name for site in sites}
    with pytest.raises(UnknownSite) as error:
        Architecture({"bert.nowhere": "quad", sites[0].name: "2qad"}).validate(sites)
    assert "bert.nowhere" in str(error.value) and "did you mean '2quad'" in str(error.value)
    with pytest.raises(UnknownVariant, match="softmax variant 'quad'"):
        Architecture({sites[0].name: "quad"}).validate(sites)
    with pytest.raises(UnknownVariant, match="did you mean"):
        Architecture.uniform(sites, {"softmax": "2qad"})
