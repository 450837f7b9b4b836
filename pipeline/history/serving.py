"""The LoggedModel of a run: seeds in, samples out. MLflow loads this file by its code, without unpickling anything.

    model = mlflow.pyfunc.load_model("models:/<model id>")
    model.predict([0, 1])                               # classes are drawn, as the run's metric says
    model.predict([0], params={"label": "3", "count": 4})   # four of class 3: the seeds 0 to 3
    model.predict([0, 1], params={"labels": [3]})       # of class 3; or one class for each seed

The kind of data says what one sample is as text: an image as base64 PNG, a clip of sound as base64 WAV, a point as a
JSON list, or a text.

A model brings the package's code with it. One process imports one package of a name, so a second model whose code
differs is refused: it would otherwise run the code of the first one.
"""

import hashlib
import importlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import pandas as pd  # type: ignore[import-untyped]
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel, PythonModelContext

PACKAGE = "pipeline"
CODE = Path(__file__).parent / "code" / PACKAGE  # where MLflow puts a model's code, next to this file


def digest_code(folder: Path) -> str:
    """Return a hash of the names and contents of a package's modules, 12 hex digits."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        found.update(
            f"{path.relative_to(folder).as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode()
        )
    return found.hexdigest()[:12]


def require_own_code(own: Path) -> None:
    """Refuse to run a model with other code than its own; a model without code takes the code that is there.

    Raises:
        RuntimeError: with both versions, and the way out.
    """
    here = Path(str(importlib.import_module(PACKAGE).__file__)).parent
    if own.is_dir() and (needed := digest_code(own)) != (found := digest_code(here)):
        msg = (
            f"this process has imported {PACKAGE} {found} from {here}, and the model was logged with {needed}: "
            f"load it in a new Python process, before any other model and without `import {PACKAGE}`"
        )
        raise RuntimeError(msg)


require_own_code(CODE)  # before anything of the package is imported, which another version may lack

from pipeline import artifacts, weights  # noqa: E402
from pipeline.artifacts import ArtifactError  # noqa: E402
from pipeline.formats.provenance import GENERATED, SOURCE_TYPE  # noqa: E402
from pipeline.history import choices  # noqa: E402
from pipeline.kinds import Pool  # noqa: E402
from pipeline.weights import Loaded  # noqa: E402


class Generator(PythonModel):
    """Samples from the kept weights."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the weights, how the run's metric samples them, and what the fields they are given are drawn from."""
        config = context.model_config or {}
        loaded = weights.load_model(Path(context.artifacts["model"]))
        self.loaded = replace(loaded, pool=Pool.restore(config["given"])) if config.get("given") else loaded
        self.sampling = SimpleNamespace(**config.get("sampling", {}))
        self.classes = list(config.get("classes", ()))
        self.sha256 = artifacts.digest(Path(context.artifacts["model"]) / weights.WEIGHTS)

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[str] | list[dict[str, Any]]:
        """Return one sample for each seed, equal for equal seeds.

        Args:
            context: unused.
            model_input: seeds, a column or a list.
            params: `label`, a class by name or number; `count`, samples of each seed, which have the seeds after it;
                `seed`, added to all seeds; `details`, whether a sample comes with its seed, class and origin; `prompt`
                and `temperature` of a text; and by the name of a given field a list of values, one for all samples or
                one for each; empty: drawn.

        Raises:
            MlflowException: if an option is out of range, the values are not that many, the training data had no such
                value, or the prompt has characters that they lack.
        """
        del context
        given = {**choices.OPTIONS, **(params or {})}
        label, count, seed, details = (given.pop(name) for name in choices.OPTIONS)
        chosen = {name: given.pop(name) for name in choices.CHOSEN if name in given}
        sampling = SimpleNamespace(**vars(self.sampling) | chosen)
        try:
            choices.require_range(count, chosen.get("temperature", 0))
            choices.require_prompt(self.loaded, chosen.get("prompt", ""), "prompt")
            if label:
                given |= self._find_label(label, given)
            first = np.asarray(model_input).ravel().tolist()
            seeds = [seed + each + more for each in first for more in range(count)]
            pairs = list(zip(seeds, self._give(len(seeds), given), strict=True))
            samples = [loaded.kind.encode(loaded, choices.start(loaded, seed), sampling) for seed, loaded in pairs]
            if not details:
                return samples
            return [{"sample": sample, **self._describe(*pair)} for sample, pair in zip(samples, pairs, strict=True)]
        except ArtifactError as error:  # MLflow's server answers 400 with the message, and no traceback
            raise MlflowException(str(error), INVALID_PARAMETER_VALUE) from None

    def _find_label(self, label: str, given: Mapping[str, Any]) -> dict[str, list[int]]:
        """Return the given field that has the classes, with the value of the class of that name or number."""
        field = choices.find_field(self.loaded)
        if len(given.get(field, ())):
            msg = f"label: expected label or {field}, got both"
            raise ArtifactError(msg)
        found = choices.find_labels(self.loaded, self.classes, label)
        if not found:
            known = ", ".join(choices.list_labels(self.loaded, self.classes).values())
            msg = f"label: expected one of {known or 'nothing'}, got {label}"
            raise ArtifactError(msg)
        return {field: found[:1]}

    def _describe(self, seed: int, loaded: Loaded) -> dict[str, Any]:
        """Return the seed of a sample, its class where it has one, and the mark that a model made it."""
        label = choices.name_drawn(loaded, self.classes, seed)
        return {
            "seed": seed,
            **({"label": label} if label else {}),
            "model_sha256": self.sha256,
            SOURCE_TYPE: GENERATED,
        }

    def _give(self, count: int, values: Mapping[str, Any]) -> list[Loaded]:
        """Return for each of `count` samples the model with a pool of the values that it is to be given."""
        pools = [self.loaded.pool] * count
        for name, given in values.items():
            if len(given) not in {0, 1, count}:
                msg = f"{name}: expected one value, or one for each of {count} seeds, got {len(given)}"
                raise ArtifactError(msg)
            if len(given):
                each = list(given) * (count if len(given) == 1 else 1)
                pools = [pool.keep(name, value) for pool, value in zip(pools, each, strict=True)]
        return [replace(self.loaded, pool=pool) for pool in pools]


mlflow.models.set_model(Generator())
