"""A trained model on disk: model.safetensors with the kept weights, config.json with all that rebuilds it, sealed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline import artifacts, plugins
from pipeline.artifacts import ArtifactError, Spec
from pipeline.formats.tokenizers import TextTokenizer, restore_tokenizer
from pipeline.params import Section


@dataclass(frozen=True)
class Loaded:
    """A model in evaluation mode, on the device that the machine has, with its tokenizer if it writes text."""

    model: Any
    kind: str
    config: Section
    tokenizer: TextTokenizer | None

    def write(
        self,
        count: int,
        generator: torch.Generator,
        *,
        prompt: str = "\n",
        length: int = 400,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 0.95,
    ) -> list[str]:
        """Continue a prompt `count` times by `length` tokens; see the model's `sample`."""
        if self.tokenizer is None:
            msg = "this model writes no text"
            raise TypeError(msg)
        start = torch.tensor(self.tokenizer.encode(prompt), dtype=torch.int64)
        tokens: Tensor = self.model.sample(
            start, count, length, generator, temperature=temperature, top_k=top_k, top_p=top_p
        )
        return [self.tokenizer.decode(row) for row in tokens.tolist()]


def choose_device() -> torch.device:
    """Return the accelerator, if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def save_model(folder: Path, plug_in: str, model: Any, config: Section, spec: Spec, tokenizer: Any = None) -> None:
    """Write the kept weights of a LightningModule and what rebuilds it."""
    tensors = {name: tensor.detach().cpu() for name, tensor in model.kept.state_dict().items()}
    broken = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        msg = f"{folder}: not written, weights are not finite: {', '.join(broken[:5])}"
        raise ArtifactError(msg)
    artifacts.write_tensors(folder / "model.safetensors", tensors)
    kind = next(kind for kind, known in artifacts.SPECS.items() if isinstance(spec, known))
    about = {"model": plug_in, "kind": kind, "config": config.model_dump(), "spec": spec.model_dump(mode="json")}
    artifacts.write_json(folder / "config.json", {**about, "tokenizer": tokenizer})
    artifacts.seal(folder)


def load_model(folder: Path) -> Loaded:
    """Rebuild a model from its folder.

    Raises:
        ArtifactError: if a file is missing, broken or does not fit the model's code.
    """
    artifacts.verify(folder)
    about = artifacts.read_json(folder / "config.json")
    module = plugins.load("models", about["model"])
    config = module.Config.model_validate(about["config"])
    spec = artifacts.SPECS[about["kind"]].model_validate(about["spec"])
    model = module.Model(config, spec, seed=0)
    try:
        model.kept.load_state_dict(artifacts.read_tensors(folder / "model.safetensors"))
    except RuntimeError as error:
        msg = f"{folder / 'model.safetensors'}: does not fit pipeline/models/{about['model']}.py: {error}"
        raise ArtifactError(msg) from error
    state = about["tokenizer"]
    tokenizer = restore_tokenizer(state) if state else None
    return Loaded(model.eval().to(choose_device()), about["kind"], config, tokenizer)
