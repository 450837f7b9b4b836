"""One file, one kind of data: how values of this kind are checked, written, learnt, drawn, shown and served.

A data set is a mapping of named fields of equal length, each of one kind. This file holds what all kinds share:

Spec             properties of a field that a model needs, such as its shape
write            turns what a source prepared into the files of data/prepared/<data>, and returns the manifest
question_data    sentences on what in a manifest is perhaps not what the user meant, each with the key that changes it
show_data        the training split at a glance, by class: an Exhibit
examples         training examples of a split, for the loop in training.py
require          optional: refuses, before anything is computed, data that a model's config or the sampling does not fit
check            refuses values that would give a plausible number for nonsense
show             many values as one thing to look at or listen to: an Exhibit
picture          optional: the same as a picture, of values that `show` does not show to the eye
encode           one value as text, for the served model
stream           optional: one value in pieces, for a page that shows it while it is made
compose          optional: several values by the settings of sampling, for the page that plays with a model
TOGETHER         optional: number of values that are shown as one, where a single one shows nothing
complete         optional: values of which a part is kept and the rest drawn by a model that can; `read_files` reads
                 them for `pipeline generate --complete`, and `show_completions` shows them
draw_one         one value, and `to_file` an Exhibit of it, for `pipeline generate`; SAMPLING has the settings it takes
draw             makes the files of the stage `sample`: for the metrics, and exhibits for the eye
look, find_alarms   what is shown and measured about eight times per training, and what in it is alarming
make_pool        what a field is drawn from where a model is given it; without it, rows of the test split
find_silent_alarms  why the data are too few for these alarms
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from pydantic import BaseModel, ConfigDict

from pipeline import artifacts, plugins
from pipeline.artifacts import ArtifactError
from pipeline.formats.folders import resembles_split
from pipeline.params import Known
from pipeline.randomness import make_generator

if TYPE_CHECKING:
    import torch
    from torch import Tensor


TEST, TRAIN = "test", "train"  # splits, and rules: given fields are drawn as a split has them; without a rule, as test
FEWEST = 500  # training examples below which a set is tiny
MOST_REPEATED = 0.01  # share of a split that may repeat an example of it
MOST_SHARED = 0.001  # share of a split that may be in another one too
MOST_UNEQUAL = 10  # times as many examples in the largest class as in the smallest
MOST_ABSENT = 0.1  # share of the classes that may be absent from validation, which serves previews only
NAMED = 5  # classes that a sentence lists
MOST_DUPLICATES = 0.8  # share of the samples; the default VAE has 0.75 after a quarter of its training, 0.06 in the end
# Examples of a share of duplicates: one example is always a duplicate. Among sets of points of one Gaussian, the share
# is above MOST_DUPLICATES in 21 % of the sets of two, in 0.8 % of those of five, and in none of 2,000 sets of fifteen.
LEAST_ALIKE = 20


class FieldSpec(BaseModel):
    """Properties of one field that a model needs; each kind adds its own."""

    model_config = ConfigDict(frozen=True)

    kind: str


Fields = Mapping[str, Any]  # each field's spec, by the field's name


class Exhibit(NamedTuple):
    """Something to look at or listen to; only its suffix (.png, .wav, .txt, ...) decides how it is shown."""

    name: str
    suffix: str
    content: bytes


class Drawn(NamedTuple):
    """The output of the stage `sample`: tensors by file and name, for the metrics, and exhibits."""

    files: dict[str, dict[str, Tensor]]
    exhibits: list[Exhibit]


class Look(NamedTuple):
    """The exhibits of a preview, and the values that it adds to the record."""

    exhibits: list[Exhibit]
    values: dict[str, float]


def parse_fields(entries: Mapping[str, Any]) -> dict[str, FieldSpec]:
    """Turn a manifest's `fields` into specs: {"images": {"kind": "images", "shape": [1, 28, 28]}, ...}."""
    return {
        name: cast("FieldSpec", plugins.load("kinds", entry["kind"]).Spec.model_validate(entry))
        for name, entry in entries.items()
    }


def dump_fields(fields: Fields) -> dict[str, Any]:
    """Return the JSON form of fields."""
    return {name: spec.model_dump(mode="json") for name, spec in fields.items()}


def flatten_fields(fields: Fields) -> dict[str, Any]:
    """Return the kind that makes the fields, and what all of them specify, as a model's config.json has it.

    Raises:
        ArtifactError: if two fields specify the same.
    """
    specs = dump_fields(fields)
    kinds = [spec["kind"] for spec in specs.values()]  # JSON has sorted the fields: labels come before points
    kind = next(kind for kind in kinds if hasattr(plugins.load("kinds", kind), "make_fields"))
    pairs = [(key, value) for spec in specs.values() for key, value in spec.items() if key != "kind"]
    if len(dict(pairs)) < len(pairs):
        msg = f"two fields specify the same: {specs}"
        raise ArtifactError(msg)
    return {"kind": kind, "spec": dict(pairs)}


def unflatten_fields(about: Mapping[str, Any]) -> dict[str, FieldSpec]:
    """Return the fields that flatten_fields wrote."""
    fields: dict[str, FieldSpec] = plugins.load("kinds", about["kind"]).make_fields(**about["spec"])
    return fields


def read_fields(data: str) -> dict[str, FieldSpec]:
    """Return the fields of the prepared data set `data`."""
    return parse_fields(artifacts.read_manifest(data)["fields"])


def read_known(data: str) -> Known:
    """Return what is known of the prepared data set `data`."""
    manifest = artifacts.read_manifest(data)
    return Known(parse_fields(manifest["fields"]), manifest["splits"])


def find_field(fields: Fields, kinds: Sequence[str]) -> str:
    """Return the name of the first field that is of one of the kinds.

    Raises:
        ArtifactError: if there is none.
    """
    for name, spec in fields.items():
        if spec.kind in kinds:
            return name
    found = ", ".join(f"{name} ({spec.kind})" for name, spec in fields.items())
    msg = f"expected a field of the kind {' or '.join(kinds)}, the data has {found}"
    raise ArtifactError(msg)


@dataclass(frozen=True)
class Pool:
    """What the fields given to a model are drawn from: rows of values (R, ...) by field, and their weights (R,).

    Rows are drawn independently, so that every part of a set is a sample like the whole. Exact shares of the classes
    would lower FID and its noise. But a model that is given nothing has the noise of independent draws, and real
    training images have nearly as much: next to both, exact shares would flatter. A part of an exact set is not exact,
    either, and FID extrapolated over parts is too low then: 2.2 for the default GAN, where 20,000 samples have 3.4 and
    independent draws give 3.7 (means of 8 sets of 1,000).
    """

    values: Mapping[str, Tensor] = field(default_factory=dict)
    weights: Sequence[float] = ()

    def draw(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Return `count` rows of each field, on the CPU; none of a pool without fields."""
        import torch

        if not self.values:
            return {}
        ends = torch.tensor(self.weights, dtype=torch.float64).cumsum(0)
        places = torch.rand(count, dtype=torch.float64, generator=generator, device=generator.device).cpu() * ends[-1]
        rows = torch.searchsorted(ends, places, right=True)  # never one of weight zero
        return {name: values[rows] for name, values in self.values.items()}

    def dump(self) -> dict[str, Any]:
        """Return the pool's JSON form; empty without fields, and for rows of data, which do not belong in a model."""
        if not self.values or any(values.ndim > 1 for values in self.values.values()):
            return {}
        return {"values": {name: each.tolist() for name, each in self.values.items()}, "weights": list(self.weights)}

    @classmethod
    def restore(cls, value: Mapping[str, Any]) -> Pool:
        """Return the pool that `dump` wrote."""
        import torch

        values = {name: torch.tensor(each) for name, each in value.get("values", {}).items()}
        return cls(values, value.get("weights", ()))

    def keep(self, name: str, value: float) -> Pool:
        """Return the rows whose field `name` has the value.

        Raises:
            ArtifactError: if there is none.
        """
        known = self.values[name].tolist() if name in self.values else []
        rows = [row for row, each in enumerate(known) if each == value]
        if not rows:
            msg = f"{name}: expected one of {', '.join(map(str, known)) or 'nothing'}, got {value}"
            raise ArtifactError(msg)
        weights = [self.weights[row] for row in rows]
        kept = {other: values[rows] for other, values in self.values.items()}
        return Pool(kept, weights if any(weights) else [1.0] * len(rows))


def name_key(data: str, config: Any, *keys: str) -> str:
    """Return the full name of the first of the keys that the data's source has, or of its path, or of the source."""
    fields = type(config).model_fields
    own = "path" if "max_broken" in fields else "source"  # sources of your own files have it; the others ignore `path`
    return f"data.{data}.{next((key for key in keys if key in fields), own)}"


def question_examples(data: str, manifest: Mapping[str, Any], config: Any) -> list[str]:
    """Return doubts about the number of examples: a tiny set, and examples that are there twice."""
    splits = manifest["splits"]
    found = []
    if (count := splits["train"]["count"]) < FEWEST:
        found.append(f"{name_key(data, config, 'count')}: {count} training examples are few, a model may copy them")
    for name, entry in splits.items():
        count, source = entry["count"], name_key(data, config)
        if (repeated := entry.get("duplicates", 0)) > MOST_REPEATED * count:
            found.append(f"{source}: {repeated} of {count} examples in the {name} split repeat another one")
        shared = {other: entry.get(f"shared_with_{other}", 0) for other in splits}
        found += [
            f"{source}: {number} of {count} examples in the {name} split are in the {other} split too"
            for other, number in shared.items()
            if number > MOST_SHARED * count
        ]
    return found


def question_files(data: str, manifest: Mapping[str, Any], config: Any) -> list[str]:
    """Return doubts about your own files: captions and tables that nobody reads, and files that are there twice."""
    files = manifest.get("files", {"count": 0, "duplicates": 0})
    names = [what for what in ("caption", "table") if what in files.get("ignored", {})]
    found = [f"files that are ignored: {files['ignored'][what]} of the kind {what}" for what in names]
    if files["duplicates"] > MOST_REPEATED * files["count"]:
        found.append(f"{files['duplicates']} of {files['count']} files repeat another one, and are not used")
    return [f"{name_key(data, config)}: {doubt}" for doubt in found]


def question_classes(data: str, manifest: Mapping[str, Any], config: Any) -> list[str]:
    """Return doubts about the classes: one only, names of splits, absent from a split, or very unequal."""
    splits = manifest["splits"]
    per_class = splits["train"]["per_class"]
    names = [repr(name) for name in manifest.get("classes", ()) or range(len(per_class))]
    folders = name_key(data, config, "folders")
    if len(per_class) == 1:
        return [f"{folders}: one class only, so models learn no labels and the classifier cannot be trained"]
    found = []
    alike = [repr(name) for name in manifest.get("classes", ()) if resembles_split(name)]
    if alike and getattr(config, "folders", "auto") == "auto":
        advice = "split folders are one named train and others named test or validation, without further folders"
        found.append(f"{folders}: {_list(alike)} are classes, though named like splits; {advice}")
    for name, entry in splits.items():
        absent = [names[label] for label, count in enumerate(entry["per_class"]) if not count]
        if len(absent) > (MOST_ABSENT * len(names) if name == "validation" else 0):
            given = manifest.get("known", {}).get("splits", {}).get(name, "").endswith("/")  # by a folder
            key = folders if given else name_key(data, config, name)
            found.append(
                f"{key}: the {name} split has no example of {len(absent)} of {len(names)} classes: {_list(absent)}"
            )
    least, most = min(per_class), max(per_class)
    if 0 < least * MOST_UNEQUAL < most:
        small, large = names[per_class.index(least)], names[per_class.index(most)]
        found.append(f"{name_key(data, config)}: class {large} has {most} training examples, class {small} has {least}")
    return found


def _list(names: Sequence[str]) -> str:
    """Return the first names, and the number of those left out."""
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def make_pool(
    fields: Fields, names: Sequence[str], sampling: Any, manifest: Mapping[str, Any], read: Callable[[str], Any]
) -> Pool:
    """Return what the fields `names`, given to a model, are drawn from.

    A field is drawn as its kind says, by the rule that `sampling` has under the field's name. Fields of other kinds,
    and several together, are rows of the split that the rule names, so that they fit one another.

    Args:
        fields: of the data.
        names: of the given fields.
        sampling: the section of the run's metric; a field that it does not name is drawn as the test split has it.
        manifest: of the prepared data.
        read: returns a split by its name.

    Raises:
        ArtifactError: if the rule does not fit the fields.
    """
    if not names:
        return Pool()
    rules = {name: getattr(sampling, name, TEST) for name in names}
    kind = plugins.load("kinds", fields[names[0]].kind)
    if len(names) == 1 and hasattr(kind, "make_pool"):
        pool: Pool = kind.make_pool(names[0], rules[names[0]], manifest)
        return pool
    rule = rules[names[0]]
    if rule not in (TEST, TRAIN) or any(other != rule for other in rules.values()):
        msg = f"sampling: expected {TEST} or {TRAIN} for {' and '.join(names)}, got {rules}"
        raise ArtifactError(msg)
    split = read(rule)
    return Pool({name: split[name] for name in names}, [1.0] * len(split[names[0]]))


def draw_one(loaded: Any, generator: torch.Generator, sampling: Any) -> Tensor:
    """Draw one value, such as an image uint8 (C, H, W), on the CPU."""
    del sampling
    value: Tensor = loaded.sample(1, generator)[0]
    return value


def draw_sets(loaded: Any, seed: int, count: int, sets: int) -> dict[str, dict[str, Tensor]]:
    """Draw independent sets of `count` samples, named "0", "1", ..., each from its own generator.

    Files: generated, and given_<field> with what each sample was given.
    """
    files: dict[str, dict[str, Tensor]] = {"generated": {}}
    for index in range(sets):
        given = loaded.pool.draw(count, make_generator(seed, "given", index))
        generator = make_generator(seed, "sample", index, device=loaded.model.device)
        files["generated"][str(index)] = loaded.sample(count, generator, given)
        for name, values in given.items():
            files.setdefault(f"given_{name}", {})[str(index)] = values
    return files


def duplicate_share(samples: Tensor, real: Tensor) -> float:
    """Return the share of samples (N, ...) that are much closer to another one than real examples are: 1 is collapse.

    Much closer: within half the median distance from a real example (M, ...) to the nearest other, in equal counts.
    Arora and Zhang (2018) look for duplicates by eye; this is their birthday test with a distance.
    """
    count = min(len(samples), len(real))
    radius = _nearest(real[:count]).median() / 2
    return float((_nearest(samples[:count]) <= radius).double().mean())


def _nearest(values: Tensor) -> Tensor:
    """Euclidean distance from each of (N, ...) to the nearest other, (N,)."""
    import torch

    flat = values.flatten(1).double()
    return torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(math.inf).amin(dim=1)
