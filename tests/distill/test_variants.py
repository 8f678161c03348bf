import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill import UnknownVariant, variants
from distill.variants.activation_quad_channel import QuadChannelActivation, fit_quad_channel
from distill.variants.softmax_power import PowerSoftmax, fit_power

SOFTMAXES = [name for name in variants.names("softmax")]


def make(name: str, heads: int = 2) -> torch.nn.Module:
    variant = variants.get("softmax", name)
    assert variant.module is not None
    return variant.module(**variant.arguments(heads))


@pytest.mark.parametrize("name", SOFTMAXES)
def test_softmax_variant_gives_probabilities_and_ignores_masked_keys(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(3, 2, 5, 7, generator=generator)
    keep = torch.ones(3, 1, 1, 7, dtype=torch.bool)
    keep[1, ..., 4:] = False
    module = make(name)
    probabilities = module(scores, keep)
    assert torch.all(probabilities >= 0)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(3, 2, 5))
    assert probabilities[1, :, :, 4:].abs().max() < 1e-12
    changed = scores.clone()
    changed[1, ..., 4:] = 50.0
    torch.testing.assert_close(module(changed, keep), probabilities)
    if name != "2relu":  # whose ε/n depends on the number of keys, padding included
        torch.testing.assert_close(module(scores[1:2, ..., :4], None), probabilities[1:2, ..., :4])


def sampled(scores: torch.Tensor, keep: torch.Tensor) -> dict[str, torch.Tensor]:
    """A calibration's statistics of score rows [rows, heads, keys], without extremes beyond them."""
    none = scores[:0]
    return {"scores": scores, "keep": keep, "extreme_scores": none, "extreme_keep": none}


def seen(x: torch.Tensor, moments: torch.Tensor) -> dict[str, torch.Tensor]:
    """A calibration's statistics of inputs x [rows, channels]."""
    return {"moments": moments, "extent": torch.stack([x.amin(0), x.amax(0)])}


def test_formulas() -> None:
    scores = torch.tensor([[[[-1.0, 0.5, 2.0]]]])
    weights = (scores + 5) ** 2
    torch.testing.assert_close(make("2quad")(scores, None), weights / weights.sum())
    weights = torch.relu(scores) + 2**-6 / 3
    torch.testing.assert_close(make("2relu")(scores, None), weights / weights.sum())
    power = PowerSoftmax(heads=1, power=8)
    power.slope.fill_(0.1)
    weights = (1 + scores / 10) ** 8
    torch.testing.assert_close(power(scores, None), weights / weights.sum())
    x = torch.linspace(-4, 4, 50)
    quad = variants.get("activation", "quad").module
    assert quad is not None
    torch.testing.assert_close(quad()(x), 0.125 * x**2 + 0.25 * x + 0.5)


def test_power_is_two_quad_at_c_5_and_approaches_softmax() -> None:
    scores = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    power = PowerSoftmax(heads=3, power=2)
    power.slope.fill_(1 / 5)
    torch.testing.assert_close(power(scores, None), make("2quad")(scores, None))
    errors = []
    for p in (2, 4, 8, 16):
        module = PowerSoftmax(heads=3, power=p)
        statistics = sampled(scores.transpose(1, 2).reshape(-1, 3, 6), torch.ones(8, 6))
        module.load_state_dict(fit_power(statistics, {"power": p}))
        errors.append(float((module(scores, None) - torch.softmax(scores, -1)).abs().max()))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.05


def test_fit_power_is_the_minimum_of_the_divergence() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(200, 2, 10, generator=generator) * torch.tensor([0.5, 3.0])[:, None]
    keep = torch.rand(200, 10, generator=generator) < 0.8
    keep[:, 0] = True
    tensors = fit_power(sampled(scores, keep), {"power": 4})
    fitted = tensors["slope"] / tensors["offset"]  # 1/c, whatever the factor that keeps the sums in range
    assert fitted.shape == (2, 1, 1)
    assert float(fitted.max() / fitted.min()) > 1.1, "heads whose scores differ have constants of their own"

    def divergence(inverse_c: torch.Tensor) -> torch.Tensor:
        module = PowerSoftmax(heads=2, power=4)
        module.slope.copy_(inverse_c)
        mask = keep[:, None, None]
        ours = module(scores[:, :, None], mask).clamp_min(1e-20)
        target = torch.softmax(scores[:, :, None].masked_fill(~mask, -math.inf), -1)
        return (target * (target.clamp_min(1e-20) / ours).log()).sum(-1).mean((0, 2))

    best = divergence(fitted)
    for factor in (0.8, 1.25):
        assert torch.all(divergence(fitted * factor) > best)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.floats(-3, 3), st.floats(0.1, 3))
def test_fit_quad_channel_is_least_squares(seed: int, mean: float, spread: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = mean + spread * torch.randn(400, 3, generator=generator, dtype=torch.float64)
    y = torch.nn.functional.gelu(x)
    moments = torch.stack([t.sum(0) for t in (torch.ones_like(x), x, x**2, x**3, x**4, y, x * y, x * x * y)])
    fitted = {
        key: value.double() for key, value in fit_quad_channel(seen(x, moments), {"channels": 3}).items()
    }
    ours = fitted["scale"] * (x + fitted["shift"]) ** 2 + fitted["offset"]
    for channel in range(3):
        column = x[:, channel]
        basis = torch.stack([column**2, column, torch.ones_like(column)], -1)
        solution = torch.linalg.lstsq(basis, y[:, channel]).solution
        if solution[0] < QuadChannelActivation.minimum_scale:
            rest = torch.linalg.lstsq(basis[:, 1:], y[:, channel] - 0.01 * basis[:, 0]).solution
            solution = torch.cat([torch.tensor([0.01], dtype=torch.float64), rest])
        expected = basis @ solution
        torch.testing.assert_close(ours[:, channel], expected, atol=2e-3, rtol=1e-3)


def test_fit_quad_channel_survives_a_dead_channel() -> None:
    x = torch.full((10, 1), 0.3, dtype=torch.float64)
    y = torch.nn.functional.gelu(x)
    moments = torch.stack([t.sum(0) for t in (torch.ones_like(x), x, x**2, x**3, x**4, y, x * y, x * x * y)])
    fitted = fit_quad_channel(seen(x, moments), {"channels": 1})
    value = fitted["scale"] * (0.3 + fitted["shift"]) ** 2 + fitted["offset"]
    assert abs(float(value) - float(y[0, 0])) < 1e-3


def test_project_bounds_the_leading_coefficient() -> None:
    module = QuadChannelActivation(3)
    module.scale.data.copy_(torch.tensor([-1.0, 0.001, 0.5]))
    module.project()
    torch.testing.assert_close(module.scale.data, torch.tensor([0.01, 0.01, 0.5]))


def test_unknown_names_are_suggested() -> None:
    with pytest.raises(UnknownVariant, match="did you mean '2quad'"):
        variants.get("softmax", "2qaud")
    with pytest.raises(UnknownVariant, match="did you mean 'softmax'"):
        variants.names("sofmax")
    assert variants.names("softmax")[0] == "exact"
    assert variants.names("norm") == ("exact",)


def test_a_new_kind_needs_no_other_edit() -> None:
    from distill.variants import registry

    try:
        variants.register("pooler", "identity")(torch.nn.Identity)
        assert variants.names("pooler") == ("identity",)
        with pytest.raises(UnknownVariant, match="twice"):
            variants.register("pooler", "identity")(torch.nn.Identity)
    finally:
        registry._REGISTRY.pop("pooler")


def test_public_buffers_are_named() -> None:
    module = PowerSoftmax(heads=2, power=4)
    assert module.public_buffers == ("slope", "offset")
    assert set(dict(module.named_buffers())) == {"slope", "offset"}
