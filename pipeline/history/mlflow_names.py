"""Names what MLflow shows: its interface makes a group of charts of each prefix, and sorts groups and names.

    train/loss                               values, learning rates and previews of a training, by step
    quality/fid_classifier                   the headlines of an evaluation
    pictures/samples                         its pictures
    quality/intervals/fid_classifier_low     ..._low and ..._high of each headline, and its value for real data
    quality/more/kid_classifier              every other value of the evaluation
    cost/seconds                             what the training took

An evaluation and a cost are one number per run. They are logged at step 0, of which MLflow draws bars over the runs; of
any other step it would draw a line with one point.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from pipeline import plugins
from pipeline.history.results import Results
from pipeline.params import NONE

TRAIN, QUALITY, PICTURES, COST, SYSTEM = "train/", "quality/", "pictures/", "cost/", "system/"
INTERVALS, MORE = f"{QUALITY}intervals/", f"{QUALITY}more/"
NAMES = "2"  # the edition of these names: a run with other ones is made again
FEW = ("torch", "accelerator")  # of the environment, as tags; environment.json has all
EMPTY: tuple[object, ...] = ([], {}, "", NONE, None)


def name_quality(results: Results) -> dict[str, float]:
    """Return the numbers of an evaluation by their names in MLflow."""
    headlines = results.list_headlines()
    groups = dict.fromkeys(results.metrics, MORE if results.values else QUALITY)
    groups |= {other: INTERVALS for name in headlines for _, other in results.find_real(name)}
    groups |= dict.fromkeys(headlines, QUALITY)
    found = {f"{groups[name]}{name}": value for name, value in results.metrics.items()}
    for name in headlines:
        low, high = results.find_interval(name)
        if not math.isnan(low):
            found |= {f"{INTERVALS}{name}_low": low, f"{INTERVALS}{name}_high": high}
    return found


def name_parameters(about: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record's parameters so that MLflow, which sorts them, begins with the keys of the run.

    Empty values and keys that change nothing are left out; the artifact config.json has them.
    """
    given = about["parameters"]
    changes = about.get("config", {}).get("run", {}).get("changes")
    found = {} if changes is None else {"changes": word_changes(changes)}
    unread = () if reads_path(given.get("data.source")) else ("data.path",)
    for key, value in given.items():
        if value not in EMPTY and key not in unread:
            short = key.removeprefix("run.")
            parts = value.items() if key == "run.weights" else ()
            found |= {f"{short}.{part}": each for part, each in parts} or {short: value}
    return found


def reads_path(source: str | None) -> bool:
    """Whether a data source reads `path`; of a source that this version lacks, nobody knows."""
    if source is None:
        return True
    try:
        return bool(plugins.load("data", source).Config.READS_PATH)
    except ValueError:
        return True


def word_changes(changes: Mapping[str, Any]) -> str:
    """Return a run's changes of its model as one text: loss=hinge, r1=0.1."""
    return ", ".join(f"{key}={value}" for key, value in sorted(changes.items())) or NONE


def name_configuration(config: Mapping[str, Any]) -> str:
    """Return a name that runs have in common if they differ in the seed only; MLflow can group by it.

    The first words are for people. The digits are a hash of everything that the run was told, without its seed.
    """
    run = config["run"]
    words = [f"{run['model']} on {run['data']}"]
    if run["changes"]:
        words.append(word_changes(run["changes"]))
    told = {section: values for section, values in config.items() if section != "run"}
    told["run"] = {key: value for key, value in run.items() if key != "seed"}
    text = json.dumps(told, sort_keys=True, default=str)
    return f"{', '.join(words)} ({hashlib.sha256(text.encode()).hexdigest()[:6]})"
