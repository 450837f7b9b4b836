"""The LoggedModel of a run: seeds in, samples out. MLflow loads this file by its code, without unpickling anything.

    mlflow.pyfunc.load_model("models:/<model id>").predict([0, 1])

One sample a seed: an image as base64 PNG text, a point as a JSON list of its coordinates, or a text.
"""

import base64
import io
import json
from pathlib import Path
from typing import Any

import mlflow
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from torchvision.transforms.functional import to_pil_image

from pipeline import weights
from pipeline.randomness import make_generator


class Generator(PythonModel):
    """Samples from the kept weights."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load weights and config."""
        self.loaded = weights.load_model(Path(context.artifacts["model"]))

    def predict(self, context: Any, model_input: list[int], params: dict[str, Any] | None = None) -> list[str]:
        """Return one sample for each seed, equal for equal seeds."""
        del context, params
        return [self._one(seed) for seed in model_input]

    def _one(self, seed: int) -> str:
        generator = make_generator(seed, "serve", device=self.loaded.model.device)
        if self.loaded.kind == "text":
            return self.loaded.write(1, generator)[0]
        drawn = self.loaded.model.sample(1, generator)[0].cpu()
        if self.loaded.kind == "points":
            return json.dumps(drawn.tolist())
        buffer = io.BytesIO()
        to_pil_image(drawn).save(buffer, "PNG")
        return base64.b64encode(buffer.getvalue()).decode()


mlflow.models.set_model(Generator())
