"""Generative experiment pipeline: DVC stages, Lightning models, torch-fidelity metrics, MLflow records.

Importing it makes the libraries safe, in this process and in those that it starts: a pickle that runs code is refused,
wherever it comes from, and so are versions with known holes, before they are imported.
"""

import os

from pipeline import versions

# Lightning loads a checkpoint by address, and torch-fidelity its weights, with weights_only=False: this overrules both.
os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
# Our models are saved as code and safetensors, so MLflow has nothing to unpickle; by default it would.
os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
# cuBLAS needs it for equal bits from run to run; PyTorch reads it at the first product, before Lightning may set it.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
versions.require()
