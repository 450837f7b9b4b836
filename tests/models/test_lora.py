"""Low-rank adapters: they change nothing at first, train alone, and merge into the weights exactly."""

import copy

import torch

from pipeline.kinds.text import Windows
from pipeline.layers import lora
from pipeline.training import fit
from tests.models.conftest import VOCABULARY, make_model

RANK = 2
TEXT = torch.randint(VOCABULARY, (200,), generator=torch.Generator().manual_seed(1))


def train(**changes: object) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Train adapters for four steps; return the model, and its network before there were any."""
    model = make_model(lora_rank=RANK, steps=4, learning_rate=0.1, **changes)
    before = copy.deepcopy(model.network)
    model.begin(has_start=True)
    fit(model, Windows(TEXT, 12, 0), steps=4, batch_size=4, seed=0)
    return model, before


def test_new_adapters_change_no_logit(tokens: torch.Tensor) -> None:
    model = make_model(lora_rank=RANK)
    expected = model.network(tokens)
    model.begin(has_start=True)
    assert torch.equal(model.network(tokens), expected)


def test_only_the_factors_are_trained_and_by_no_muon() -> None:
    for optimizer in ("adamw", "muon"):
        model, before = train(optimizer=optimizer)
        sizes = [len(layer.weight) + layer.weight.size(1) for _, layer in lora.list_layers(before.blocks)]
        trained = [p for p in model.network.parameters() if p.requires_grad]
        assert sum(p.numel() for p in trained) == RANK * sum(sizes)
        muon, *others = model.configure_optimizers()["optimizer"].param_groups
        assert not muon["params"]
        assert {id(p) for group in others for p in group["params"]} == {id(p) for p in trained}
        originals = {name: value for name, value in model.network.state_dict().items() if name.endswith("original")}
        assert len(originals) == len(sizes)
        for name, value in originals.items():
            assert torch.equal(value, before.state_dict()[name.replace("parametrizations.weight.original", "weight")])


def test_merged_weights_give_the_logits_of_the_adapters_and_the_old_names(tokens: torch.Tensor) -> None:
    for ema in (0.0, 0.5):
        model, before = train(ema=ema)
        kept = model.kept.eval()
        expected, base = kept(tokens), before(tokens)
        factors = model.end()
        assert (expected - base).abs().max() > 0.01
        assert (kept(tokens) - expected).abs().max() < 1e-6
        assert kept.state_dict().keys() == before.state_dict().keys()
        lora.add(before, factors)
        assert (before(tokens) - expected).abs().max() < 1e-5
        assert {tuple(factor.shape) for name, factor in factors.items() if name.endswith("up")} >= {(48, RANK)}
