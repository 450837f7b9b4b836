"""pipeline grid: lines are added and taken away, every other byte stays, and nothing wrong is written."""

from pathlib import Path

import pytest

from pipeline import params
from pipeline.__main__ import main

GRID = ("gan", "loss=relativistic,hinge", "seed=0,1,2")
ADDED = [f"gan_relativistic_{seed}" for seed in (1, 2)] + [f"gan_hinge_{seed}" for seed in (0, 1, 2)]


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(["grid", *arguments])
    shown = capsys.readouterr()
    return status, shown.out, shown.err


def test_a_run_per_combination_is_added_once_and_taken_away_again(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = workdir / "params.yaml"
    before = path.read_bytes()
    former = params.load()
    status, out, _ = call(capsys, *GRID)
    assert status == 0
    assert out.splitlines()[0] == "gan_relativistic_0: already there as gan"
    now = params.load()
    assert list(now.runs) == [*former.runs, *ADDED]
    assert {name: now.runs[name] for name in former.runs} == former.runs
    assert [now.models[name].loss for name in ADDED] == ["relativistic"] * 2 + ["hinge"] * 3
    assert [now.runs[name].seed for name in ADDED] == [1, 2, 0, 1, 2]
    text = path.read_bytes()
    old = [line for line in text.splitlines(keepends=True) if line.split(b":")[0].strip().decode() not in ADDED]
    assert b"".join(old) == before
    assert "0 runs added: none" in call(capsys, *GRID)[1]
    assert path.read_bytes() == text
    assert "5 runs removed" in call(capsys, *GRID, "--remove")[1]
    assert path.read_bytes() == before


LAYOUTS = {
    "comments": ("runs:", "runs:", "  # the last\n\n# an end"),
    "no line end": ("changes: {}}\n\0", "changes: {}}", ""),
    "carriage returns": ("\n", "\r\n", ""),
    "deep": ("\n  transformer: {model: transformer, ", "\n  transformer:\n     {model: transformer, ", ""),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_other_layouts_keep_each_of_their_bytes(workdir: Path, layout: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = workdir / "params.yaml"
    text, (old, new, end) = path.read_bytes().decode(), LAYOUTS[layout]
    head, middle, tail = text.rpartition("runs:")
    path.write_bytes((head + middle + f"{tail}\0".replace(old, new).replace("\0", "") + end).encode())
    before = path.read_bytes()
    assert call(capsys, "transformer", "seed=1")[0] == 0
    assert params.load().runs["transformer_1"].seed == 1
    assert path.read_bytes().startswith(before[: before.rindex(b"changes")])
    assert call(capsys, "transformer", "seed=1", "--remove")[0] == 0
    assert path.read_bytes() == before + b"\n" * (layout == "no line end")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gam", "seed=1"), "params.yaml: no run 'gam', did you mean 'gan'?"),
        (("gan", "los=hinge"), "los: no key of a run or of models.gan, did you mean 'loss'?"),
        (("gan", "loss=hing"), "grid of gan.loss: input should be 'non_saturating', "),
        (("gan", "seed=0,x"), "grid of gan.seed: input should be a valid integer, got 'x'"),
        (("gan", "seed"), "seed: expected a key once, = and its values, such as seed=0,1,2"),
        (("gan", "seed=1", "seed=2"), "seed=2: expected a key once"),
        (("gan", "seed=1,1"), "seed=1,1: a value comes twice"),
        (("gan", "seed=0,,1"), "seed=0,,1: expected a key once"),
        (("gan", "seed=,"), "seed=,: expected a key once"),
        (("gan", "augment=[[cutout],[flip]]"), "grid of gan.augment"),
        (("gan", "data=text", "seed=1"), "params.yaml as changed is not usable:\n  runs.gan_text_1: data text"),
    ],
)
@pytest.mark.usefixtures("workdir")
def test_what_is_wrong_is_refused_by_name_and_nothing_is_written(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Path("params.yaml").read_bytes()
    status, _, err = call(capsys, *arguments)
    assert status == 1
    assert err.startswith(f"error: {message}")
    assert Path("params.yaml").read_bytes() == before


@pytest.mark.usefixtures("workdir")
def test_a_taken_name_is_refused_and_a_changed_run_is_not_removed(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "vae", "latent=8,16", "--dry-run")[1].count("\n+  vae_latent-") == 2
    assert "vae_latent-8" not in params.load().runs
    assert call(capsys, "vae", "latent=8,16")[0] == 0
    path = Path("params.yaml")
    path.write_text(path.read_text().replace("changes: {latent: 8}", "changes: {latent: 9}"))
    assert "runs.vae_latent-8 has other settings" in call(capsys, "vae", "latent=8")[2]
    assert "1 runs removed: vae_latent-16" in call(capsys, "vae", "latent=8,16", "--remove")[1]


@pytest.mark.usefixtures("workdir")
def test_names_can_be_read_and_lists_are_values(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("gan", "seed=1", "augment=[],[translation,cutout]", "r1=0.4,1e-5", "flip=true")
    assert call(capsys, *arguments)[0] == 0
    settings = params.load()
    assert list(settings.runs)[3:] == [
        f"gan_augment-{augment}_r1-{r1}_flip-true_1"
        for augment in ("none", "translation-cutout")
        for r1 in ("0p4", "1e-05")
    ]
    model = settings.models["gan_augment-translation-cutout_r1-1e-05_flip-true_1"]
    assert (model.augment, model.r1, model.flip) == (["translation", "cutout"], 1e-5, True)
