"""Looks into a model against what is known of it: samples, torch's own attention, the lengths of normal vectors."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline import params, plugins
from pipeline.evidence.attention import capture_attention
from pipeline.evidence.looks import find_latent, pick_sentence, walk
from pipeline.formats.tokenizers import ByteTokenizer, train_tokenizer
from pipeline.kinds import text
from pipeline.kinds.images import make_fields
from pipeline.randomness import make_generator, normal
from pipeline.weights import Loaded
from tests.models.conftest import make_model


@pytest.mark.parametrize(("name", "conditional"), [("gan", True), ("vae", False), ("vae", True)])
@pytest.mark.usefixtures("tiny")
def test_the_values_of_a_sample_s_latents_are_the_sample(
    name: str, conditional: bool, edit_params: Callable[..., None]
) -> None:
    edit_params({"models.vae.prior_couplings": 2, f"models.{name}.conditional": conditional})
    config: Any = params.load().models[name]
    module = plugins.load("models", name)
    model = module.Model(config, make_fields((1, 28, 28), 10), 0).eval()
    given = {"labels": torch.tensor([3, 1, 4])} if model.given else {}
    expected = model.sample(3, make_generator(0, "x"), given)["images"]
    shape = find_latent(Loaded(model, {}, config, None), module)
    assert torch.equal(module.decode(model, normal(3, *shape, generator=make_generator(0, "x")), given), expected)
    assert expected.unique().numel() > 2


def test_attention_is_that_of_the_definition_and_leaves_the_output_as_it_is() -> None:
    generator = torch.Generator().manual_seed(0)
    queries, keys, values = (torch.randn(1, 2, 5, 8, generator=generator, dtype=torch.float64) for _ in range(3))
    outputs: list[Tensor] = []

    def attend(tokens: Tensor) -> None:
        outputs.append(F.scaled_dot_product_attention(queries, keys, values, is_causal=True))
        outputs.append(F.scaled_dot_product_attention(queries, keys, values, tokens > 1, scale=0.1))

    found = capture_attention(attend, torch.arange(5))
    assert found is not None
    scores = queries @ keys.mT
    causal = (scores / 8**0.5).masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf).softmax(dim=-1)
    masked = (scores * 0.1).masked_fill(torch.arange(5) < 2, -torch.inf).softmax(dim=-1)
    assert torch.allclose(found, torch.cat([causal, masked]).float(), atol=1e-6)
    assert torch.allclose(outputs[0], causal @ values)


def test_attention_of_the_language_model_is_causal_and_of_each_layer_and_head(tokens: Tensor) -> None:
    model = make_model()
    found = capture_attention(model.kept, tokens[0])
    assert found is not None
    assert found.shape == (2, 2, 12, 12)
    assert torch.equal(found, found.tril())
    assert torch.allclose(found.sum(dim=-1), torch.ones(2, 2, 12), atol=1e-5)
    assert capture_attention(torch.nn.Embedding(17, 2), tokens[0]) is None


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(17, (3, 12), generator=torch.Generator().manual_seed(0))


def test_a_text_in_pieces_is_the_text_in_one() -> None:
    letters = "abcdefghijklmnop"
    tokenizer = train_tokenizer([letters], "character", 0)
    assert tokenizer.size == 17  # with the unknown character, which nothing continues
    loaded = Loaded(make_model(), text.make_fields(17), make_model().config, tokenizer)
    sampling = SimpleNamespace(prompt="abc", temperature=0.0, top_k=0, top_p=1.0)
    pieces = list(text.stream(loaded, make_generator(0, "x"), sampling, 3, 3))
    [whole] = text.compose(loaded, 1, make_generator(0, "x"), sampling, 9)
    assert pieces[0] == "abc"
    assert "".join(pieces) == whole


def test_a_character_that_is_not_complete_comes_with_the_next_piece() -> None:
    tokenizer = ByteTokenizer("any")
    rest = iter(tokenizer.encode("\U0001f642\U0001f643").tolist())

    def sample(_: int, __: object, given: dict[str, Tensor], *, length: int, **___: object) -> dict[str, Tensor]:
        new = torch.tensor([next(rest) for _ in range(length)])
        return {"tokens": torch.cat([given["prompt"], new])[None]}

    model = SimpleNamespace(makes="tokens", config=SimpleNamespace(context=100), sample=sample)
    loaded = Loaded(model, {}, None, tokenizer)
    sampling = SimpleNamespace(prompt="a", temperature=1.0, top_k=0, top_p=1.0)
    pieces = list(text.stream(loaded, torch.Generator(), sampling, 2, 4))
    assert pieces == ["a", "", "\U0001f642", "", "\U0001f643"]


def test_a_walk_keeps_the_length_that_normal_vectors_have() -> None:
    first, last = (normal(1, 10_000, generator=make_generator(0, name)) for name in ("first", "last"))
    way = walk(first, last, torch.tensor([0.0, 0.5, 1.0]))
    assert torch.equal(way[:1], first)
    assert torch.allclose(way[2:], last, atol=1e-6)
    assert way.norm(dim=1).tolist() == pytest.approx([100.0] * 3, rel=0.03)  # a straight line's middle has 71


def test_a_walk_of_latents_of_any_shape_is_that_of_their_numbers() -> None:
    first, last = (normal(1, 24, generator=make_generator(0, name)) for name in ("first", "last"))
    places = torch.linspace(0, 1, 4)
    shaped = walk(first.view(1, 2, 3, 4), last.view(1, 2, 3, 4), places)
    assert shaped.shape == (4, 2, 3, 4)
    assert torch.equal(shaped.flatten(1), walk(first, last, places))


def test_a_sentence_is_a_line_of_the_text_or_else_its_beginning() -> None:
    document = "begins in the middle\nshort\nThis is a sentence of its own.\n"
    tokenizer = train_tokenizer([document], "character", 0)
    tokens = torch.from_numpy(tokenizer.encode(document).copy())
    assert tokenizer.decode(pick_sentence(tokenizer, tokens).tolist()) == "This is a sentence of its own."
    assert tokenizer.decode(pick_sentence(tokenizer, tokens[:20]).tolist()) == document[:20]
