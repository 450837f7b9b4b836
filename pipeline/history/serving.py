"""The LoggedModel of a run: seeds in, samples out. MLflow loads this file by its code, without unpickling anything.

    mlflow.pyfunc.load_model("models:/<model id>").predict([0, 1])

The kind of data says what one sample is as text: an image as base64 PNG, a point as a JSON list, or a text.

A model brings the package's code with it. One process imports one package of a name, so a second model whose code
differs is refused: it would otherwise run the code of the first one.
"""

import hashlib
import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
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
from pipeline.randomness import make_generator  # noqa: E402


class Generator(PythonModel):
    """Samples from the kept weights."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the weights, and how the run's metric samples them, such as its temperature."""
        self.loaded = weights.load_model(Path(context.artifacts["model"]))
        self.sampling = SimpleNamespace(**(context.model_config or {}).get("sampling", {}))

    def predict(self, context: Any, model_input: list[int], params: dict[str, Any] | None = None) -> list[str]:
        """Return one sample for each seed, equal for equal seeds."""
        del context, params
        device = self.loaded.model.device
        generators = [make_generator(seed, "serve", device=device) for seed in model_input]
        return [self.loaded.kind.encode(self.loaded, generator, self.sampling) for generator in generators]


mlflow.models.set_model(Generator())
