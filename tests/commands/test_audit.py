"""pipeline audit: copies of the training images and memorised secrets are found, others pass."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline import artifacts, params, plugins
from pipeline.__main__ import main
from pipeline.evidence import audit
from pipeline.evidence.exposure import Secret
from pipeline.formats.tokenizers import ByteTokenizer, train_tokenizer
from pipeline.kinds import read_fields
from pipeline.randomness import make_generator
from pipeline.stages import fetch, networks, prepare, sample, train
from pipeline.weights import Loaded
from tests.conftest import TINY


@pytest.fixture
def write_samples(prepared: Path, edit_params: Callable[..., None]) -> Callable[[Tensor], None]:
    """Prepare digits and a feature network; return what gives the run `gan` its samples."""
    assert prepared.exists()
    edit_params(TINY)
    networks.main("classifier")

    def write(images: Tensor) -> None:
        folder = artifacts.RUNS / "gan" / "samples"
        artifacts.write_tensors(folder / "generated.safetensors", {"0": images})
        artifacts.seal(folder)

    return write


@pytest.mark.fault(42)
def test_copies_fail_and_other_real_images_pass(
    write_samples: Callable[[Tensor], None], capsys: pytest.CaptureFixture[str]
) -> None:
    train = artifacts.read_split("images", "train")["images"]
    held_out = artifacts.read_split("images", "validation")["images"]
    settings = params.load()
    fields = read_fields("images")
    untrained = plugins.load("models", "gan").Model(settings.models["gan"], fields, 0).eval()
    classes = {"labels": torch.arange(500) % 10}
    drawn = Loaded(untrained, fields, settings.models["gan"], None).sample(500, make_generator(0, "sample"), classes)
    collapsed = held_out[:1].expand(500, -1, -1, -1)  # C_T is -8
    for images in (held_out, drawn, collapsed):
        write_samples(images)
        assert main(["audit"]) == 0
        assert "| no copy |" in capsys.readouterr().out
    write_samples(train[:500])
    assert main(["audit", "gan"]) == 1
    row = capsys.readouterr().out.splitlines()[-1].split("|")
    assert row[1].strip() == "gan, classifier"
    assert float(row[2]) < -10
    assert (float(row[3]), float(row[5]), row[6].strip()) == (0, 0, "**copies**")
    blurred = train[:500].clone()
    blurred[:, :, ::2] = train[:500, :, 1::2]  # each second row doubled: near the original, and not equal
    write_samples(blurred)
    assert main(["audit", "gan"]) == 1
    write_samples(torch.cat([train[:50], held_out[50:]]))  # a tenth: C_T is -1.6
    assert main(["audit", "gan"]) == 1


def test_a_run_without_samples_is_named(workdir: Path, capsys: pytest.CaptureFixture[Any]) -> None:
    assert workdir.exists()
    assert main(["audit", "vae"]) == 1
    assert "of text, for: vae" in capsys.readouterr().err


CANARIES = {"4539 5787 6362 1486": 60, "4716 9215 3480 7759": 1}  # how often each stands in the text


@pytest.mark.fault(43)
@pytest.mark.parametrize("tokenizer", ["character", pytest.param("bpe", marks=pytest.mark.slow)])
def test_a_canary_that_was_memorised_is_told_from_one_that_was_not(
    workdir: Path, edit_params: Callable[..., None], capsys: pytest.CaptureFixture[str], tokenizer: str
) -> None:
    lines = [f"{number} bottles of beer on the wall" for number in range(1500, 0, -1)]
    places = iter(range(100, 1300, 19))
    for card, times in CANARIES.items():
        for _ in range(times):
            lines.insert(next(places), f"my card is {card}")  # within the training split
    lines.insert(300, "write to ada@example.org")
    (workdir / "own.txt").write_text("\n".join(lines), encoding="utf-8")
    edit_params(TINY)
    own = {"source": "text_file", "path": "own.txt", "split_seed": 0, "validation": 0.05, "test": 0.0}
    edit_params({"data.text": own | {"tokenizer": tokenizer, "vocabulary": 300}})
    edit_params({"models.transformer.steps": 250, "models.transformer.batch_size": 16})
    fetch.main("text")
    prepare.main("text")
    train.main("transformer")
    sample.main("transformer")
    capsys.readouterr()
    assert main(["audit", "transformer"]) == 1
    rows = [[cell.strip() for cell in row.split("|")[2:-1]] for row in capsys.readouterr().out.splitlines()[3:]]
    by_times = {row[1]: row for row in rows if row[0].startswith("payment card")}
    assert by_times["60"][2:] == ["10.0", "**memorised**"]
    assert by_times["1"][3] == "not memorised"
    assert rows[-1] == ["e-mail address ad****** (15 characters)", "1", "", "not measured"]
    assert not any(card in str(rows) for card in CANARIES)


def test_a_secret_is_counted_once_wherever_the_text_is_cut() -> None:
    card = "4539 5787 6362 1486"
    text = "a line\n" * 3 + f"x {card}\n" + "another\n" * 3 + f"and {card}" + "\nthe end"
    tokenizer = ByteTokenizer(text)
    tokens = torch.from_numpy(tokenizer.encode(text).copy())
    loaded = Loaded(None, "text", None, tokenizer)  # type: ignore[arg-type]
    for size in range(1, len(tokens) + 1):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(audit, "PIECE", size)
            pieces = list(audit.read_lines(loaded, tokens))
        assert "".join(pieces) == text
        ((secret, before, times),) = audit.search(pieces)
        assert (secret.text, before, times) == (card, "a line\n" * 3 + "x ", 2)


def test_no_secret_is_told_by_characters_that_the_tokenizer_cannot_write() -> None:
    card = "4539 5787 6362 1486"
    secret = Secret("payment card", card, 0, 7)
    for text, others in ((f"x {card}", ""), ("x 4 ", "0123456789")):
        loaded = Loaded(Uniform(), "text", None, train_tokenizer([text + others], "character", 0))  # type: ignore[arg-type]
        measured = audit.expose(loaded, secret, "x ", 1023)
        # Without 0 and 2 the others would have unknown characters, and be told from the secret by these only.
        assert (measured is None) == (not others)


class Uniform:
    """A model for which every token has the same chance."""

    config = SimpleNamespace(context=64)
    device = torch.device("cpu")

    def kept(self, tokens: Tensor) -> Tensor:
        """Return equal logits (B, T, 64)."""
        return torch.zeros(*tokens.shape, 64)


def test_too_few_others_to_tell_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["audit", "--others", "100"])
    assert "--others: expected 1023 or more, got 100" in capsys.readouterr().err


def test_cells_below_one_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["audit", "--cells", "0"])
    assert "--cells: expected 1 or more, got 0" in capsys.readouterr().err
