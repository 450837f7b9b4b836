"""The LoggedModel of a run: seeds in, samples out. MLflow loads this file by its code, without unpickling anything.

    mlflow.pyfunc.load_model("models:/<model id>").predict([0, 1])

The kind of data says what one sample is as text: an image as base64 PNG, a point as a JSON list, or a text.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from pipeline import weights
from pipeline.artifacts import ArtifactError
from pipeline.randomness import make_generator


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
        try:
            return [self.loaded.kind.encode(self.loaded, generator, self.sampling) for generator in generators]
        except ArtifactError as error:  # MLflow's server answers 400 with the message, and no traceback
            raise MlflowException(str(error), INVALID_PARAMETER_VALUE) from None


mlflow.models.set_model(Generator())
