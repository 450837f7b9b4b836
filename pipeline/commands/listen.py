"""Asks a speech recogniser that this project did not train how many generated words are the ones asked for.

    pipeline listen speech            # one or more runs of spoken words, sampled here

The recogniser is pocketsphinx with its own model of English (pip install 'generative-experiment-pipeline[listen]').
It chooses one of the words that are the classes of the data, and has learnt from none of the clips. Next to its share
for generated clips is that for the same number of real test clips, and for these after the way to a picture and back:
a model of such pictures cannot be expected to do better. The command prints and writes nothing else.

Dimensions: N clips, T samples of a clip.
"""

import importlib.util
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
from torch import Tensor

from pipeline import artifacts, params, plugins
from pipeline.artifacts import ArtifactError
from pipeline.backbones import audio as backbone
from pipeline.commands import align_table, make_parser, require_runs
from pipeline.evidence.features import read_real
from pipeline.evidence.uncertainty import format_interval, format_number, summarize
from pipeline.formats.recordings import resample
from pipeline.kinds import read_fields
from pipeline.params import Params

FIELD, LABELS = "clips", "labels"
PACKAGE = "pocketsphinx"
RATE = 16_000  # samples per second that its model has learnt
TITLES = ("run", "clips", "heard as asked for", "95 % interval", "real clips", "real clips on the way back")


def main(arguments: list[str]) -> int:
    """Print a line for each run."""
    parser = make_parser("listen", __doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run of params.yaml, on data of spoken words")
    options = parser.parse_args(arguments)
    if importlib.util.find_spec(PACKAGE) is None:
        msg = f"pipeline listen: expected the package {PACKAGE}, which is not installed; install the extra `listen`: "
        raise ArtifactError(msg + "pip install 'generative-experiment-pipeline[listen]'")
    settings = params.load()
    rows = [listen(run, settings) for run in options.runs]
    print(align_table(TITLES, rows, TITLES[2:]), end="")
    print(f"heard by {PACKAGE} {version(PACKAGE)}")
    return 0


def listen(run: str, settings: Params) -> tuple[str, ...]:
    """Return the cells of one run.

    Raises:
        ArtifactError: if it has no clips of words that were asked for.
    """
    require_runs([run], settings)
    data = settings.runs[run].data
    source = plugins.load("data", settings.data[data].source)
    if hasattr(source, "foresee") and FIELD not in (fields := source.foresee(settings.data[data])):
        msg = f"runs.{run}.data: expected {FIELD}, got {', '.join(fields)} of data.{data}"
        raise ArtifactError(msg)
    folder = artifacts.RUNS / run / "samples"
    if not (folder / f"given_{LABELS}.safetensors").exists():
        msg = f"{folder}: expected the clips of a conditional model of spoken words; run `dvc repro sample@{run}`"
        raise ArtifactError(msg)
    generated = artifacts.read_tensors(folder / "generated.safetensors")
    given = artifacts.read_tensors(folder / f"given_{LABELS}.safetensors")
    spec: Any = read_fields(data)[FIELD]
    recogniser = Recogniser(artifacts.read_manifest(data)["classes"], spec.rate)
    shares = [recogniser.measure(clips, given[name]) for name, clips in generated.items()]
    count = len(next(iter(generated.values())))
    [real] = read_real(data, "test", count, 1)
    back = backbone.from_unit(backbone.to_unit(real[FIELD], spec), spec)
    summary = summarize([shares])
    return (
        run,
        f"{len(shares)} x {count}",
        format_number(summary.mean),
        format_interval(summary.low, summary.high, summary.reason),
        *(format_number(recogniser.measure(clips, real[LABELS])) for clips in (real[FIELD], back)),
    )


class Recogniser:
    """Hears one of some words in a clip, whatever it has heard before."""

    def __init__(self, words: Sequence[str], rate: int) -> None:
        """Prepare for clips of `rate` samples per second.

        Raises:
            ArtifactError: if a word is not in the dictionary.
        """
        from pocketsphinx import Decoder  # an extra

        self.words = [word.lower() for word in words]
        self.rate = rate
        self.decoder = Decoder(lm=None, cmn="batch", loglevel="FATAL")  # "live" would go on from the last clip
        if unknown := [word for word in self.words if self.decoder.lookup_word(word) is None]:
            msg = f"classes {', '.join(map(repr, unknown))}: expected English words of pocketsphinx's dictionary"
            raise ArtifactError(msg)
        grammar = f"#JSGF V1.0; grammar words; public <word> = {' | '.join(self.words)};"
        self.decoder.add_jsgf_string("words", grammar)
        self.decoder.activate_search("words")

    def measure(self, clips: Tensor, labels: Tensor) -> float:
        """Return the share of clips int16 (N, T) that it hears as their class, from labels (N,)."""
        heard = [self.hear(clip) for clip in clips.numpy()]
        wanted = [self.words[label] for label in labels.tolist()]
        return sum(one == other for one, other in zip(heard, wanted, strict=True)) / len(wanted)

    def hear(self, clip: np.ndarray) -> str:
        """Return the word of a clip int16 (T,), or an empty text if it hears none."""
        values = resample(clip.astype(np.float64), self.rate, RATE)
        limits = np.iinfo(np.int16)
        self.decoder.start_utt()
        self.decoder.process_raw(values.round().clip(limits.min, limits.max).astype(np.int16).tobytes(), full_utt=True)
        self.decoder.end_utt()
        found = self.decoder.hyp()
        return found.hypstr if found else ""
