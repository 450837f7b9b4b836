"""A trained model on disk, sealed: the kept weights in model.safetensors, everything to rebuild it in config.json."""

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from pipeline import artifacts, plugins
from pipeline.artifacts import ArtifactError
from pipeline.formats.tokenizers import TextTokenizer, extend_tokenizer, match_tokens, restore_tokenizer
from pipeline.kinds import Fields, Pool, flatten_fields, read_fields, unflatten_fields
from pipeline.params import Section

WEIGHTS, CONFIG, ADAPTER = "model.safetensors", "config.json", "adapter.safetensors"


@dataclass(frozen=True)
class Learnt:
    """What a model of a data set is made for: its fields, and the state of its tokenizer if it writes text.

    tokens: the start's token for each token, -1 for those that it lacks; empty without a start.
    """

    fields: Fields
    tokenizer: dict[str, str] | None = None
    tokens: Sequence[int] = ()


@dataclass(frozen=True)
class Loaded:
    """A model in evaluation mode, on the device that the machine has, with its tokenizer if it writes text.

    pool: what the fields that the model is given are drawn from; of a stored model, as the training split had them.
    """

    model: Any
    fields: Fields
    config: Any
    tokenizer: TextTokenizer | None
    pool: Pool = field(default_factory=Pool)

    @property
    def kind(self) -> ModuleType:
        """The kind of data that the model makes, a file in pipeline/kinds/."""
        return plugins.load("kinds", self.fields[self.model.makes].kind)

    def sample(self, count: int, generator: torch.Generator, given: Mapping[str, Tensor] | None = None) -> Tensor:
        """Draw `count` values, such as images uint8 (N, C, H, W), on the CPU.

        Args:
            count: N.
            generator: source of the noise, on the model's device, and of the given fields without `given`.
            given: the fields that the model is given, such as labels int64 (N,).

        Raises:
            ArtifactError: if a field is neither given nor in the pool.
        """
        given = self.pool.draw(count, generator) if given is None else given
        if missing := [name for name in self.model.given if name not in given]:
            msg = f"the model is given {', '.join(missing)}: expected a tensor with a value for each sample, got none"
            raise ArtifactError(msg)
        values: Tensor = self.model.sample(count, generator, given)[self.model.makes]
        return values.cpu()


def read_learnt(data: str, start: Path | None = None) -> Learnt:
    """Return what a model of the prepared data set `data` is made for.

    A model of text that starts from another one keeps its characters: they follow those of the data.

    Args:
        data: the data set.
        start: folder of the model that it starts from.

    Raises:
        ArtifactError: if no tokenizer has the tokens of both.
    """
    fields, path = read_fields(data), artifacts.PREPARED / data / "tokenizer.json"
    if not path.exists():
        return Learnt(fields)
    own = artifacts.read_json(path)
    state = artifacts.read_json(start / CONFIG)["tokenizer"] if start else None
    if not state:
        return Learnt(fields, own)
    try:
        both = extend_tokenizer(own, state)
    except ValueError as error:
        msg = f"data.{data}.tokenizer: {error}, from {start}; character and byte go with any text"
        raise ArtifactError(msg) from error
    size = restore_tokenizer(both).size
    wider = {name: spec.model_copy(update={"vocabulary": size}) for name, spec in fields.items()}
    return Learnt(wider, both, match_tokens(both, state))


def choose_device() -> torch.device:
    """Return the accelerator, if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def save_model(
    folder: Path,
    plug_in: str,
    model: Any,
    config: Section,
    fields: Fields,
    *,
    tokenizer: Any = None,
    pool: Pool | None = None,
    adapter: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the kept weights of a LightningModule, what rebuilds it, and what its given fields are drawn from.

    `adapter`: factors of low-rank adapters, which the weights contain; they are written once more by themselves.
    """
    tensors = {name: tensor.detach().cpu() for name, tensor in model.kept.state_dict().items()}
    broken = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        msg = f"{folder}: not written, weights are not finite: {', '.join(broken[:5])}"
        raise ArtifactError(msg)
    artifacts.write_tensors(folder / WEIGHTS, tensors)
    if adapter:
        artifacts.write_tensors(folder / ADAPTER, {name: tensor.cpu() for name, tensor in adapter.items()})
    about = {"model": plug_in, "config": config, **flatten_fields(fields), "tokenizer": tokenizer}
    given = pool.dump() if pool else {}
    artifacts.write_json(folder / CONFIG, about | ({"given": given} if given else {}))
    artifacts.seal(folder)


def load_model(folder: Path, family: str = "models") -> Loaded:
    """Rebuild a model, or a network that was trained (`family`), from its folder.

    Raises:
        ArtifactError: if a file is missing, broken or does not fit the model's code.
    """
    artifacts.verify(folder)
    about = artifacts.read_json(folder / CONFIG)
    module = plugins.load(family, about["model"])
    try:
        config = module.Config.model_validate(about["config"])
    except ValidationError as error:
        problem = error.errors()[0]
        where = f"{folder / CONFIG}: config.{'.'.join(map(str, problem['loc']))}"
        msg = f"{where}: does not fit pipeline/{family}/{about['model']}.py: {problem['msg']}; train the model again"
        raise ArtifactError(msg) from error
    fields = unflatten_fields(about)
    model = module.Model(config, fields, seed=0)
    try:
        model.kept.load_state_dict(artifacts.read_tensors(folder / WEIGHTS))
    except RuntimeError as error:
        msg = f"{folder / WEIGHTS}: does not fit pipeline/{family}/{about['model']}.py: {' '.join(str(error).split())}"
        raise ArtifactError(msg) from error
    state = about["tokenizer"]
    tokenizer = restore_tokenizer(state) if state else None
    pool = Pool.restore(about.get("given", {}))
    return Loaded(model.eval().to(choose_device()), fields, config, tokenizer, pool)


def start_from(
    model: Any,
    folder: Path,
    *,
    skip: Sequence[str],
    freeze: Sequence[str],
    tokens: Sequence[int] = (),
    others: Mapping[str, Tensor] | None = None,
) -> None:
    """Give a new model the kept weights of a trained one, by name, and freeze some of them.

    Args:
        model: a LightningModule.
        folder: of the trained model.
        skip: patterns of names, such as `head.*`, that keep their fresh weights.
        freeze: patterns of names that are not trained.
        tokens: the source's token for each token of the model, -1 for a new one, whose rows keep their fresh weights.
        others: weights that the trained model did not keep, such as `discriminator.head.weight`, by the names that they
            have in the model; patterns are about them too.

    Raises:
        ArtifactError: if a pattern matches nothing, or a weight is missing or has another shape: each by its name.
    """
    artifacts.verify(folder)
    source = artifacts.read_tensors(folder / WEIGHTS)
    targets = [model.trained] if model.kept is model.trained else [model.trained, model.kept]
    others = others or {}
    parts = {name.partition(".")[0] for name in others}
    rest = {name: value for name, value in model.state_dict().items() if name.partition(".")[0] in parts}
    names = [*targets[0].state_dict(), *rest]
    for key, patterns in (("skip", skip), ("freeze", freeze)):
        if idle := [pattern for pattern in patterns if not fnmatch.filter(names, pattern)]:
            msg = f"{key}: {', '.join(idle)} matches no weight; the model has {', '.join(names)}"
            raise ArtifactError(msg)
    taken = {name: tensor for name, tensor in source.items() if not _matches(name, skip)}
    for name in taken.keys() & set(getattr(model, "token_rows", ())) if tokens else ():
        taken[name] = _take_rows(taken[name], targets[0].state_dict()[name], tokens)
    more = {name: tensor for name, tensor in others.items() if not _matches(name, skip)}
    sides = [(target, target.state_dict(), taken) for target in targets] + [(model, rest, more)]
    for target, expected, found in sides:
        problems = _compare_shapes(expected, found, skip)
        if problems:
            msg = f"{folder}: {len(problems)} weights do not fit; name them in `skip` to train them from scratch:\n  "
            raise ArtifactError(msg + "\n  ".join(problems))
        target.load_state_dict(found, strict=False)
    for name, parameter in (*targets[0].named_parameters(), *model.named_parameters()):
        parameter.requires_grad_(parameter.requires_grad and not _matches(name, freeze))


def _take_rows(source: Tensor, fresh: Tensor, tokens: Sequence[int]) -> Tensor:
    """Return the rows (V, D) of a model's tokens: of the source where it has the token, else the fresh ones."""
    rows = torch.tensor(tokens)
    return torch.where((rows < 0)[:, None], fresh, source[rows.clamp(min=0)])


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _compare_shapes(target: Mapping[str, Tensor], source: Mapping[str, Tensor], skip: Sequence[str]) -> list[str]:
    """Return a line for each weight that one side lacks, or that has another shape."""
    lines = []
    for name in sorted(target.keys() | source.keys()):
        if _matches(name, skip):
            continue
        shapes = [tuple(side[name].shape) if name in side else "nothing" for side in (source, target)]
        if shapes[0] != shapes[1]:
            lines.append(f"{name}: the start has {shapes[0]}, the model has {shapes[1]}")
    return lines
