"""Generative experiment pipeline: DVC stages, Lightning models, torch-fidelity metrics, MLflow records.

Importing it makes the libraries safe, in this process and in those that it starts: a pickle that runs code is refused,
wherever it comes from, so are versions with known holes, before they are imported, and no library tells its makers that
it runs. MLflow does that in every training, except under pytest and CI, where no test would notice.
"""

import importlib
import os
from pathlib import Path
from typing import Any

from pipeline import versions

# Lightning loads a checkpoint by address, and torch-fidelity its weights, with weights_only=False: this overrules both.
os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
# Our models are saved as code and safetensors, so MLflow has nothing to unpickle; by default it would.
os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
# MLflow asks a host for instructions and writes an installation id to the home folder; it obeys either of the two, read
# as it is imported and again at each call. Hugging Face's hub obeys the second. DVC's switches are in .dvc/config.
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["DO_NOT_TRACK"] = "true"
# Matplotlib, which torchmetrics imports, keeps a list of fonts: in the project's folder, not in the home folder.
project = Path(os.environ.get("DVC_ROOT", ".")).resolve()
if (project / "params.yaml").exists():
    os.environ.setdefault("MPLCONFIGDIR", str(project / ".state" / "matplotlib"))
# cuBLAS needs it for equal bits from run to run; PyTorch reads it at the first product, before Lightning may set it.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
versions.require()


def load(address: str | Path) -> Any:
    """Load a trained model by its address, and run no code but this package's; see pipeline/history/trained.py.

    Args:
        address: a run of this project, a folder, models:/<id>, models:/<name>@<alias> or runs:/<run id>.

    Returns:
        A model whose `draw([0, 1])` returns one sample per seed.

    Raises:
        ArtifactError: if there is no such model, or a file of it is missing, unsealed, damaged or unfit for this code.
    """
    return importlib.import_module("pipeline.history.trained").load(address)  # torch takes seconds to import
