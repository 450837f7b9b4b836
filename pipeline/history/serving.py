"""The LoggedModel of a run: seeds in, samples out. MLflow loads this file by its code, without unpickling anything.

    model = mlflow.pyfunc.load_model("models:/<model id>")
    model.predict([0, 1])                               # classes are drawn, as the run's metric says
    model.predict([0, 1], params={"labels": [3]})       # of class 3; or one class for each seed

The kind of data says what one sample is as text: an image as base64 PNG, a point as a JSON list, or a text.

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

from pipeline import weights  # noqa: E402
from pipeline.artifacts import ArtifactError  # noqa: E402
from pipeline.kinds import Pool  # noqa: E402
from pipeline.randomness import make_generator  # noqa: E402
from pipeline.weights import Loaded  # noqa: E402


class Generator(PythonModel):
    """Samples from the kept weights."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the weights, how the run's metric samples them, and what the fields they are given are drawn from."""
        config = context.model_config or {}
        loaded = weights.load_model(Path(context.artifacts["model"]))
        self.loaded = replace(loaded, pool=Pool.restore(config["given"])) if config.get("given") else loaded
        self.sampling = SimpleNamespace(**config.get("sampling", {}))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> list[str]:
        """Return one sample for each seed, equal for equal seeds.

        Args:
            context: unused.
            model_input: seeds, a column or a list.
            params: by the name of a given field a list of values, one for all samples or one for each; empty: drawn.

        Raises:
            MlflowException: if the values are not that many, the training data had no such value, or the prompt has
                characters that they lack.
        """
        del context
        seeds = np.asarray(model_input).ravel().tolist()
        try:
            return [
                loaded.kind.encode(loaded, make_generator(seed, "serve", device=loaded.model.device), self.sampling)
                for seed, loaded in zip(seeds, self._give(len(seeds), params or {}), strict=True)
            ]
        except ArtifactError as error:  # MLflow's server answers 400 with the message, and no traceback
            raise MlflowException(str(error), INVALID_PARAMETER_VALUE) from None

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
