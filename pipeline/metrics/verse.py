"""How many of a language model's samples keep the form of regulated verse, next to how well it predicts held-out text.

A sample is one poem: what the model writes after the prompt, up to the first empty line. It keeps the form if it has
two or four couplets of one length, 5 + 5 or 7 + 7 characters; see pipeline/formats/verses.py. A sample without an empty
line has not ended, and does not keep it. The share of whole couplets among the samples' lines is a weaker measure.

A model may keep the form by writing down poems that it knows: `copied_share` is the share of the couplets that are in
the training text. All shares have their value of real test poems next to them.

The texts are the exhibit that the stage `sample` writes together with the scores, because the scores have no texts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from ruamel.yaml import YAML

from pipeline import artifacts
from pipeline.artifacts import ArtifactError
from pipeline.evidence.values import Value
from pipeline.formats.tokenizers import CharacterTokenizer, restore_tokenizer
from pipeline.formats.verses import GAP, is_couplet, is_regulated
from pipeline.metrics import text
from pipeline.metrics.text import Sampling
from pipeline.params import Known, Measure, Params

if TYPE_CHECKING:
    from pipeline.kinds.text import TextConfig

KIND = text.KIND
SPLITS = ("train", *text.SPLITS)
READS_EXHIBITS = True
NUMBERS = text.NUMBERS
DRAWN = tuple(f"metric.sampling.{name}" for name in ("count", "length", "prompt", "temperature", "top_k", "top_p"))
REAL = ("reference.sha256.test",)
TRAIN = "reference.sha256.train"
VALUES = {
    "form_share": Value(direction="higher", unit="of the samples", headline=True, counts="samples", depends=DRAWN),
    "form_share_real": Value(role="real", of="form_share", unit="of the test poems", depends=REAL),
    "form_share_se": Value(role="error", of="form_share", unit="of the samples", over="samples", depends=DRAWN),
    "couplet_share": Value(direction="higher", unit="of the samples' lines", counts="samples", depends=DRAWN),
    "couplet_share_real": Value(role="real", of="couplet_share", unit="of the test poems' lines", depends=REAL),
    "copied_share": Value(
        direction="lower", unit="of the samples' couplets", counts="samples", depends=(*DRAWN, TRAIN)
    ),
    "copied_share_real": Value(
        role="real", of="copied_share", unit="of the test poems' couplets", depends=(*REAL, TRAIN)
    ),
    "samples": Value(role="count", unit="samples"),
    **text.VALUES,
}


class Config(Measure):
    """How the poems are sampled, and the text is scored."""

    sampling: Sampling


@dataclass(frozen=True)
class Evidence:
    """What the samples say, and the scores of held-out text.

    samples: each text without its prompt. real: the test poems. known: the lines of the training text.
    """

    samples: Sequence[str]
    real: Sequence[str]
    known: frozenset[str]
    scores: text.Evidence


def gather(key: str, settings: Params, circumstances: Mapping[str, Any]) -> Evidence:
    """Read the samples, the poems and the scores.

    Raises:
        ArtifactError: if the samples are not those of the run's settings.
    """
    run = settings.runs[key]
    sampling = cast("Config", settings.metrics[run.metric]).sampling
    path = artifacts.REPORTS / "runs" / key / "samples" / "samples.yaml"
    if not path.exists():
        msg = f"{path}: expected the samples, found no file; `dvc repro --single-item --force sample@{key}` writes them"
        raise ArtifactError(msg)
    samples = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    if len(samples) != sampling.count or not all(each.startswith(sampling.prompt) for each in samples):
        msg = f"{path}: expected {sampling.count} texts that begin with {sampling.prompt!r}, got {len(samples)}"
        raise ArtifactError(msg)
    parts = {split: read_text(run.data, split) for split in ("train", "test")}
    return Evidence(
        [each.removeprefix(sampling.prompt) for each in samples],
        [poem for poem in parts["test"].split(GAP) if poem],
        frozenset(parts["train"].split("\n")),
        text.gather(key, settings, circumstances),
    )


def read_text(data: str, split: str) -> str:
    """Return a prepared split as text; a character that its tokenizer lacks is still one Chinese character."""
    tokenizer = restore_tokenizer(artifacts.read_json(artifacts.PREPARED / data / "tokenizer.json"))
    decoded = tokenizer.decode(artifacts.read_split(data, split)["tokens"].tolist())
    return decoded.replace(CharacterTokenizer.UNKNOWN, "〇") if isinstance(tokenizer, CharacterTokenizer) else decoded


def require(key: str, settings: Params, known: Mapping[str, Known]) -> None:
    """Refuse data without a test split, and what the text's metric refuses.

    Raises:
        ArtifactError: with the key to change.
    """
    data = settings.runs[key].data
    if not cast("TextConfig", settings.data[data]).test:
        msg = f"data.{data}.test: expected a share above 0, real poems to compare samples with, got 0"
        raise ArtifactError(msg)
    text.require(key, settings, known)


def compute(evidence: Evidence, config: Config) -> dict[str, list[float]]:
    """Return the shares of samples and of real poems, and the text's metrics; one value each.

    Raises:
        ArtifactError: as the text's metric, or without a sample or a test poem.
    """
    if not evidence.samples or not evidence.real:
        msg = f"expected samples and test poems, got {len(evidence.samples)} and {len(evidence.real)}"
        raise ArtifactError(msg)
    count = len(evidence.samples)
    drawn = measure([each.partition(GAP) for each in evidence.samples], evidence.known)
    real = measure([(poem, GAP, "") for poem in evidence.real], evidence.known)
    shares = drawn | {f"{name}_real": value for name, value in real.items()}
    kept = drawn["form_share"] * count
    # The standard error of Agresti and Coull (1998): with two more of either outcome it is never 0.
    wide = (kept + 2) / (count + 4)
    shares |= {"form_share_se": (wide * (1 - wide) / (count + 4)) ** 0.5, "samples": count}
    scores = text.compute(evidence.scores, text.Config(sampling=config.sampling))
    return {name: [float(value)] for name, value in shares.items()} | scores


def measure(poems: Sequence[tuple[str, str, str]], known: frozenset[str]) -> dict[str, float]:
    """Return the shares of poems that keep the form, of lines that are couplets, and of couplets that are known.

    Args:
        poems: each as its text, what ends it or nothing, and the rest, which does not count.
        known: lines of the training text.
    """
    lines = [line for poem, _, _ in poems for line in poem.split("\n")]
    couplets = [line for line in lines if is_couplet(line)]
    return {
        "form_share": sum(bool(end) and is_regulated(poem) for poem, end, _ in poems) / len(poems),
        "couplet_share": len(couplets) / len(lines),
        "copied_share": sum(line in known for line in couplets) / len(couplets) if couplets else 0.0,
    }
