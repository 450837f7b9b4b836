"""Stage prepare: turns the raw files of one data set into checked tensors and a manifest in data/prepared/<data>.

    python -m pipeline.stages.prepare images

Images become uint8 (N, C, H, W) with labels int64 (N,); text becomes tokens int32 (N,) and a tokenizer that was made
from the training split alone. manifest.json holds SHA-256, shapes, value range and class or character counts.
"""

import shutil
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from pipeline import artifacts, params, plugins
from pipeline.artifacts import ArtifactError, ImageSpec, TextSpec
from pipeline.data.splits import ImageConfig, ImageSplits, TextConfig, Texts
from pipeline.stages import run_stage
from pipeline.tokenization import train_tokenizer


def main(key: str) -> None:
    """Prepare the section data.<key>."""
    config = cast("ImageConfig | TextConfig", params.load().data[key])
    source = config.model_dump()["source"]
    splits = plugins.load("data", source).prepare(artifacts.RAW / key, config)
    folder = artifacts.PREPARED / key
    shutil.rmtree(folder, ignore_errors=True)
    manifest = (
        write_images(folder, splits)
        if isinstance(splits, ImageSplits)
        else write_texts(folder, splits, cast("TextConfig", config))
    )
    artifacts.write_json(folder / "manifest.json", {"source": source, "config": config.model_dump(), **manifest})
    for name, entry in manifest["splits"].items():
        print(f"{key} {name}: {', '.join(f'{k} {v}' for k, v in entry.items() if k not in {'sha256', 'per_class'})}")


def write_images(folder: Path, images: ImageSplits) -> dict[str, Any]:
    """Write each split's images and labels; return the manifest."""
    entries = {}
    for name, (pixels, labels) in images.splits.items():
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or len(pixels) != len(labels) or not len(pixels):
            msg = f"{folder} {name}: expected uint8 (N, C, H, W) and N labels, got {pixels.dtype} {tuple(pixels.shape)}"
            raise ArtifactError(msg)
        path = folder / f"{name}.safetensors"
        artifacts.write_tensors(path, {"images": pixels, "labels": labels})
        entries[name] = {
            "sha256": artifacts.digest(path),
            "count": len(pixels),
            "shape": list(pixels.shape),
            "minimum": int(pixels.min()),
            "maximum": int(pixels.max()),
            "per_class": torch.bincount(labels, minlength=images.classes).tolist(),
            "shared_with_train": 0 if name == "train" else count_shared(pixels, images.splits["train"][0]),
        }
    channels, height, width = images.splits["train"][0].shape[1:]
    spec = ImageSpec(shape=(channels, height, width), classes=images.classes)
    return {"kind": "images", "spec": spec.model_dump(mode="json"), "splits": entries}


def count_shared(images: Tensor, train: Tensor) -> int:
    """Count images that stand byte for byte in the training split too."""
    known = {image.numpy().tobytes() for image in train}
    return sum(image.numpy().tobytes() in known for image in images)


def write_texts(folder: Path, texts: Texts, config: TextConfig) -> dict[str, Any]:
    """Write each split's tokens, and the tokenizer; return the manifest."""
    tokenizer = train_tokenizer(texts.splits["train"], config.tokenizer, config.vocabulary)
    artifacts.write_json(folder / "tokenizer.json", tokenizer.state())
    entries = {}
    for name, text in texts.splits.items():
        path = folder / f"{name}.safetensors"
        tokens = torch.tensor(tokenizer.encode(text), dtype=torch.int32)
        artifacts.write_tensors(path, {"tokens": tokens})
        entries[name] = {
            "sha256": artifacts.digest(path),
            "tokens": len(tokens),
            "characters": len(text),
            "bytes": len(text.encode("utf-8")),
            "distinct_characters": len(set(text)),
        }
    return {"kind": "text", "spec": TextSpec(vocabulary=tokenizer.size).model_dump(), "splits": entries}


if __name__ == "__main__":
    run_stage(main)
