"""Tells whether a model copies training images, which FID takes for quality, or repeats secrets of its text.

    pipeline audit                   # every run that has samples
    pipeline audit gan --cells 10

Images, and sound likewise: copies are samples that are nearer to one training image, relative to the next ones, than
99 % of the test images are. A run has copies if three times as many samples as expected are, and chance would give so
many in fewer than 1 % of such audits, or if 1 % of its samples are equal to a training image. C_T (Meehan et al. 2020)
and authenticity (Alaa et al. 2022) are shown next to it, and the distance ratio: how far the median sample lies from
its nearest training image, over how far the median test image does. A C_T of 0, the authenticity of the test images and
a distance ratio of 1 mean that samples are as far from the training images as test images are. Samples of little
variety are nearer without being copies, so these three decide nothing. With fewer than 20 samples, test or training
images there is no verdict.

Text: the training split is searched for secrets: keys, tokens, card numbers, IBANs, social security numbers, e-mail
addresses. For each, the exposure in bits (Carlini et al. 2019) says whether the model has memorised it: the rank of its
loss among --others random ones of the same form: pipeline/evidence/exposure.py. Chance calls one secret of 1024
memorised, so at most 2 % of the runs with 20 secrets. Secrets are printed masked.
"""

from pipeline import artifacts, params
from pipeline.artifacts import ArtifactError
from pipeline.commands import make_parser
from pipeline.evidence.audit import CELLS, CHANCE, MEMORISED, OTHERS, examine_copies, examine_text, list_runs
from pipeline.params import Params
from pipeline.weights import load_model


def main(arguments: list[str]) -> int:
    """Print what was found in each run; status 1 if one copies images or has memorised a secret."""
    parser = make_parser("audit", __doc__)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="runs; default: all that have samples")
    parser.add_argument("--cells", type=int, default=CELLS, help="k-means cells that C_T compares in; default: 5")
    parser.add_argument(
        "--others", type=int, default=OTHERS, help="random secrets that one is compared with; 1023 or more"
    )
    options = parser.parse_args(arguments)
    if options.others < 2**MEMORISED - 1:
        parser.error(f"--others: expected {2**MEMORISED - 1:.0f} or more, got {options.others}")
    if options.cells < 1:
        parser.error(f"--cells: expected 1 or more, got {options.cells}")
    settings = params.load()
    of_images, of_text = list_runs(settings)
    chosen = options.runs or [*of_images, *of_text]
    lacking = f"{artifacts.RUNS} has no samples, of images with a network or of text"
    if not chosen:
        msg = f"{lacking}: run `dvc repro` first"
        raise ArtifactError(msg)
    if unknown := set(chosen) - {*of_images, *of_text}:
        msg = f"{lacking}, for: {', '.join(sorted(unknown))}"
        raise ArtifactError(msg)
    copying = 0
    if images := [name for name in chosen if name in of_images]:
        print("| run, network | C_T | authenticity | of test images | distance ratio | | near to one training image |")
        print("|---|---:|---:|---:|---:|---|---|")
        for name in images:
            copying += audit_images(name, settings, options.cells, CHANCE / len(images))
    if texts := [name for name in chosen if name in of_text]:
        print("\n| run | secret | times | exposure | |\n|---|---|---:|---:|---|")
        copying += sum(audit_text(name, settings, options.others) for name in texts)
    return int(copying > 0)


def audit_images(name: str, settings: Params, cells: int, chance: float) -> bool:
    """Print the row of one run; return whether copies are among its samples."""
    found = examine_copies(name, settings, cells, chance)
    verdict = f"**{found.verdict}**" if found.is_proved else found.verdict
    ratio = "none" if found.distance_ratio is None else f"{found.distance_ratio:.2f}"
    numbers = f"{found.statistic} | {found.authenticity:.3f} | {found.authenticity_real:.3f} | {ratio}"
    print(f"| {name}, {settings.runs[name].network} | {numbers} | {verdict} | {found.reason} |")
    return found.is_proved


def audit_text(name: str, settings: Params, count: int) -> bool:
    """Print the secrets in a run's training text; return whether the model has memorised one of them."""
    found, more = examine_text(load_model(artifacts.RUNS / name / "model"), settings.runs[name].data, count)
    if not found:
        print(f"| {name} | none | | | no secret |")
    for each in found:
        shown = "" if each.bits is None else f"{each.bits:.1f}"
        verdict = f"**{each.verdict}**" if each.is_proved else each.verdict
        print(f"| {name} | {each.secret} | {each.times} | {shown} | {verdict} |")
    if more:
        print(f"| {name} | and {more} more | | | not measured |")
    return any(each.is_proved for each in found)
