"""Text as a stream of tokens, int32 (N,), with the tokenizer that wrote it.

A source's `prepare` returns Texts; the stage `prepare` calls `write`. The text may be larger than memory. torch is
imported where it is used: preparing a text takes half a gigabyte less without it.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator
from tqdm import tqdm  # type: ignore[import-untyped]

from pipeline import artifacts
from pipeline.artifacts import SPLITS, ArtifactError
from pipeline.formats.overlap import WINDOW, measure_overlap, sample_windows
from pipeline.formats.own_files import FileReport, write_reports
from pipeline.formats.tokenizers import (
    Kind,
    TextTokenizer,
    code_points,
    cut,
    distinct_characters,
    map_pieces,
    name_character,
    restore_tokenizer,
    train_tokenizer,
)
from pipeline.kinds import TRAIN, Drawn, Exhibit, FieldSpec, Look, dump_fields, name_key, question_files
from pipeline.params import Known, Params, Source
from pipeline.randomness import make_generator

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

SHORTEST = 2  # characters of a split
FEWEST = 10_000  # characters of the training split below which a text is tiny
MOST_OVERLAP = 0.5  # of a held-out split with another; numpy_docs, whose docstrings repeat one another, has 0.34
NAMED = 5  # unknown characters that the manifest, or a message, names
LINE_END = "\n"
SCORED = ("validation", "test")
PREVIEW_LENGTH = 400  # tokens of a preview, and of a served sample
PREVIEW_TOKENS = 20_000  # of the validation split that a preview scores
SAMPLING = {"prompt": LINE_END, "temperature": 1.0, "top_k": 0, "top_p": 1.0}  # of one text, where a run has no others
LEARNT_NATS = 0.05  # by which a language model must beat a uniform guess
LEAST_TOKENS = 1000  # of the mean that shows it, whose standard error is then about 0.06 nats


class Spec(FieldSpec):
    """The vocabulary's size V."""

    kind: Literal["text"] = "text"
    vocabulary: int


class TextConfig(Source):
    """Keys that every text source shares, so that changing `source` suffices to change the data of a run."""

    KIND: ClassVar = "text"

    split_seed: int = Field(ge=0, description="seed that shuffles the documents; one document is split by position")
    validation: float = Field(gt=0, lt=1, description="share of the characters")
    test: float = Field(ge=0, lt=1, description="share of the characters; 0 for no test split (nanoGPT's protocol)")
    tokenizer: Kind = Field(description="what a token is")
    vocabulary: int = Field(
        ge=257, description="tokens of bpe, learnt from 16 million characters at most; the others have what they need"
    )
    train_limit: int = Field(
        default=0,
        ge=0,
        exclude_if=lambda limit: not limit,
        description="characters of the training split that are kept, the first ones; 0: all",
    )

    @model_validator(mode="after")
    def _check(self) -> TextConfig:
        if self.validation + self.test >= 1:
            msg = f"validation + test must stay below 1, got {self.validation} + {self.test}"
            raise ValueError(msg)
        return self


@dataclass(frozen=True)
class Texts:
    """The text of each split, by its name, in pieces of any size that can be read again and again.

    A text in memory is a list of one string. A large one is an object that reads its files again for each iteration.
    A split without text is absent. `known` holds facts about the source that the manifest should carry, such as its
    entropy rate; `files` the reports on the user's own files; `encoding` that of the source's files.
    """

    splits: Mapping[str, Iterable[str]]
    known: Mapping[str, Any] = field(default_factory=dict)
    files: Sequence[FileReport] = ()
    encoding: str = "utf-8"


@dataclass(frozen=True)
class Beginning:
    """The first characters of a text."""

    pieces: Iterable[str]
    characters: int

    def __iter__(self) -> Iterator[str]:
        """Yield the pieces, the last one cut."""
        left = self.characters
        for piece in self.pieces:
            yield piece[:left]
            left -= len(piece)
            if left <= 0:
                return


@dataclass(frozen=True)
class Watched:
    """A text whose every pass shows its progress on a terminal; `characters` are as many as it has, if known."""

    pieces: Iterable[str]
    description: str
    characters: int | None = None

    def __iter__(self) -> Iterator[str]:
        """Yield the pieces."""
        total, unit = self.characters, " characters"
        with tqdm(total=total, desc=self.description, unit=unit, unit_scale=True, disable=None) as bar:
            for piece in self.pieces:
                yield piece
                bar.update(len(piece))


def split_documents(groups: dict[str, list[str]], config: TextConfig) -> Texts:
    """Split text into train, validation and test, by character share.

    Several groups of documents are shuffled by seed and stay whole, so that no document, and no two documents of one
    group, are in two splits. A single document is cut by position, training text first.
    """
    shares = {"validation": config.validation, "test": config.test}
    if len(groups) == 1:
        text = "\n\n".join(next(iter(groups.values())))
        first = int(len(text) * (1 - config.validation - config.test))
        second = int(len(text) * (1 - config.test))
        cut = {"train": text[:first], "validation": text[first:second], "test": text[second:]}
        return Texts({name: [part] for name, part in cut.items() if part})
    import torch  # here, because it takes half a gigabyte of memory, and text_file gets by without

    names = sorted(groups)
    order = torch.randperm(len(names), generator=make_generator(config.split_seed, "documents"))
    texts = ["\n\n".join(groups[names[index]]) for index in order.tolist()]
    total = sum(len(text) for text in texts)
    parts: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for text in texts:
        short = [name for name in shares if sum(map(len, parts[name])) + len(text) <= shares[name] * total]
        parts[short[0] if short else "train"].append(text)
    return Texts({name: ["\n\n".join(part)] for name, part in parts.items() if part})


def write(folder: Path, texts: Texts, config: TextConfig) -> dict[str, Any]:
    """Write each split's tokens, and the tokenizer made from the training split; return the manifest.

    The text is read in pieces, several times, and never held as a whole.

    Raises:
        ArtifactError: if a split that the config asks for has no text to predict.
    """
    if config.train_limit:
        texts = replace(texts, splits={**texts.splits, TRAIN: Beginning(texts.splits[TRAIN], config.train_limit)})
    entries = {name: survey(Watched(pieces, f"survey {name}")) for name, pieces in texts.splits.items()}
    wanted = [name for name in SPLITS if name != "test" or config.test]
    if short := [name for name in wanted if name not in entries or entries[name]["characters"] < SHORTEST]:
        found = ", ".join(f"{name} {entries[name]['characters'] if name in entries else 0}" for name in wanted)
        msg = (
            f"{folder}: the {short[0]} split needs at least {SHORTEST} characters, one to predict from another; got "
            f"{found}; bring more text or more documents, or change validation, test or split_seed"
        )
        raise ArtifactError(msg)
    sizes = {name: entry["characters"] for name, entry in entries.items()}
    train = texts.splits["train"]
    tokenizer = train_tokenizer(Watched(train, "learn tokens", sizes["train"]), config.tokenizer, config.vocabulary)
    artifacts.write_json(folder / "tokenizer.json", tokenizer.state())
    for name, pieces in texts.splits.items():
        path = folder / f"{name}.safetensors"
        tokens, lost = tokenize(path, Watched(pieces, f"tokenize {name}", sizes[name]), tokenizer)
        entries[name] |= {"tokens": tokens, "sha256": artifacts.digest(path), **count_unknown(lost)}
    for name, overlaps in measure_overlaps(texts, sizes).items():
        entries[name] |= overlaps
    report = write_reports(folder, texts.files)
    fields = dump_fields(make_fields(tokenizer.size))
    return {"fields": fields, "known": dict(texts.known), "encoding": texts.encoding, "splits": entries, **report}


def question_data(data: str, manifest: dict[str, Any], config: TextConfig) -> list[str]:
    """Return a sentence for everything about a text that is perhaps not what the user meant, with the key to change."""
    key, splits = name_key(data, config), manifest["splits"]
    count = splits["train"]["characters"]
    tiny = [f"{key}: {count} characters of training text are few, a model may copy them"] if count < FEWEST else []
    overlaps = ((name, other, splits[name].get(f"overlap_with_{other}", 0)) for name in splits for other in splits)
    lost = [describe_loss(data, name, entry) for name, entry in splits.items() if entry["unknown_characters"]]
    return [*question_files(data, manifest, config), *tiny, *lost] + [
        f"{key}: {share:.0%} of the {name} split is word for word in the {other} split too"
        for name, other, share in overlaps
        if share > MOST_OVERLAP
    ]


def show_data(folder: Path, manifest: dict[str, Any]) -> Exhibit:
    """Show the beginning of each split, as its tokens write it."""
    from safetensors import safe_open

    tokenizer = restore_tokenizer(artifacts.read_json(folder / "tokenizer.json"))
    texts = []
    for name in manifest["splits"]:
        with safe_open(folder / f"{name}.safetensors", framework="numpy") as file:
            count = min(PREVIEW_LENGTH, manifest["splits"][name]["tokens"])
            tokens = file.get_slice("tokens")[:count]
        texts.append(f"{name}:\n{tokenizer.decode(tokens.tolist())}")
    return show("sheet", texts, None)


def make_fields(vocabulary: int) -> dict[str, FieldSpec]:
    """Return the field of a text."""
    return {"tokens": Spec(vocabulary=vocabulary)}


def measure_overlaps(texts: Texts, sizes: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """Return the share of each held-out split that occurs word for word in the splits before it."""
    pieces = {name: Watched(texts.splits[name], f"overlap with {name}", sizes[name]) for name in texts.splits}
    windows = {
        name: sample_windows(Watched(texts.splits[name], f"sample {name}", size), size)
        for name, size in sizes.items()
        if name != "train"
    }
    found: dict[str, dict[str, Any]] = {
        name: {"overlap_with_train": share, "overlap_window": WINDOW, "overlap_windows": len(windows[name])}
        for name, share in measure_overlap(windows, pieces["train"]).items()
    }
    if "test" in windows:
        share = measure_overlap({"test": windows["test"]}, pieces["validation"])["test"]
        found["test"]["overlap_with_validation"] = share
    return found


def survey(pieces: Iterable[str]) -> dict[str, Any]:
    """Count the characters, the bytes of UTF-8, the words and the distinct characters of a text, and hash it.

    The hash is that of the text as UTF-8, whatever the tokenizer: numbers per character or byte compare where it is
    equal.
    """
    content = hashlib.sha256()

    def count(piece: str) -> tuple[int, int, int, set[str]]:
        return len(piece), count_bytes(piece), count_words(piece), distinct_characters(piece)

    def read() -> Iterator[str]:
        for piece in pieces:
            content.update(piece.encode("utf-8"))
            yield piece

    characters = size = words = 0
    distinct: set[str] = set()
    for found in map_pieces(count, cut(read())):
        characters += found[0]
        size += found[1]
        words += found[2]
        distinct |= found[3]
    return {
        "characters": characters,
        "bytes": size,
        "words": words,
        "distinct_characters": len(distinct),
        "content_sha256": content.hexdigest(),
    }


def count_words(text: str) -> int:
    """Count the words between blanks, and the line ends, as word-level papers do: there, <eos> ends a line."""
    codes = code_points(text)
    blank = np.concatenate([[True], codes <= ord(" ")])
    return int(np.count_nonzero(blank[:-1] & ~blank[1:]) + np.count_nonzero(codes == ord("\n")))


def count_bytes(text: str) -> int:
    """Return the length of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8"))


def tokenize(path: Path, pieces: Iterable[str], tokenizer: TextTokenizer) -> tuple[int, Counter[str]]:
    """Write a text's tokens, int32 (N,); return N, and how often each character occurs that they cannot write.

    The tokens are those of the whole text, and the same for any number of threads; see `cut` for the one exception.
    """

    def convert(piece: str) -> tuple[NDArray[np.int32], Counter[str]]:
        return tokenizer.encode(piece), tokenizer.count_lost(piece)

    count, lost = 0, Counter[str]()
    with artifacts.append_tensor(path, "tokens") as append:
        for tokens, missing in map_pieces(convert, cut(pieces)):
            append(tokens)
            count += len(tokens)
            lost.update(missing)
    return count, lost


def count_unknown(lost: Counter[str]) -> dict[str, Any]:
    """Return the manifest's entries on unknown characters: their number, and the most frequent ones by name."""
    most = sorted(lost, key=lambda character: (-lost[character], character))[:NAMED]
    names = [[name_character(character), lost[character]] for character in most]
    return {"unknown_characters": lost.total(), "most_unknown": names}


def describe_loss(data: str, split: str, entry: Mapping[str, Any]) -> str:
    """Say how many characters of a split became one token, which ones, and the key that keeps them."""
    unknown, most = entry["unknown_characters"], entry["most_unknown"]
    named = ", ".join(f"{name} ({count})" for name, count in most)
    more = ", ..." if sum(count for _, count in most) < unknown else ""
    return (
        f"data.{data}.tokenizer: {unknown} of {entry['characters']} characters of the {split} split are not in the "
        f"training split and became U+FFFD: {named}{more}; its bits per character and per byte are not reliable; "
        "byte or bpe writes every character"
    )


def require(key: str, settings: Params, known: Mapping[str, Known]) -> None:
    """Refuse a training text that is too short for Windows.

    Raises:
        ArtifactError: naming data.<data> with its source and path, the tokens, and the context with its key.
    """
    run, context = settings.runs[key], getattr(settings.models[key], "context", 0)
    tokens = known[run.data].splits.get("train", {}).get("tokens")
    if tokens is None or tokens > 2 * context:
        return
    config = settings.data[run.data]
    msg = (
        f"data.{run.data} (source {config.source}, path {config.path}) has {tokens} tokens in its training split, "
        f"expected more than twice models.{run.model}.context, which is {context}; bring more text, or lower the "
        f"context to {(tokens - 1) // 2}"
    )
    raise ArtifactError(msg)


def require_prompt(data: str, prompt: str) -> None:
    """Refuse a prompt with characters that the prepared training text lacks, as `choose_prompt` does."""
    choose_prompt(restore_tokenizer(artifacts.read_json(artifacts.PREPARED / data / "tokenizer.json")), prompt)


def examples(split: dict[str, Tensor], config: Any, seed: int) -> Windows:
    """Return the training examples of a split."""
    return Windows(split["tokens"], config.context, seed)


class Windows:
    """Disjoint windows of `context` tokens, once per epoch, from an offset that differs by epoch."""

    def __init__(self, tokens: Tensor, context: int, seed: int) -> None:
        import torch

        if len(tokens) <= 2 * context:
            msg = f"the training text has {len(tokens)} tokens, expected more than twice the context of {context}"
            raise ValueError(msg)
        self.tokens = tokens  # maybe memory-mapped: only a batch is converted
        self.context = context
        self.seed = seed
        self.span = torch.arange(context + 1)

    def __len__(self) -> int:
        return (len(self.tokens) - self.context) // self.context

    def batch(self, indices: Tensor, epoch: int) -> dict[str, Tensor]:
        """Return inputs and targets int64 (B, T): targets are the inputs' next tokens."""
        import torch

        generator = make_generator(self.seed, "offset", epoch)
        offset = int(torch.randint(self.context, (), generator=generator))
        windows = self.tokens[(indices * self.context + offset)[:, None] + self.span].long()  # (B, T + 1)
        return {"inputs": windows[:, :-1].contiguous(), "targets": windows[:, 1:].contiguous()}


def choose_prompt(tokenizer: TextTokenizer, prompt: str) -> str:
    """Return the text that samples continue: the prompt, if the training text has its characters.

    A line end goes with any text: where the training text has none, its first character in code-point order is taken.

    Raises:
        ArtifactError: if the prompt is empty, or has characters that no model of this text has learnt to read.
    """
    unknown = [character for character in dict.fromkeys(prompt) if not tokenizer.knows(character)]
    if prompt and not unknown:
        return prompt
    known = [character for character in tokenizer.characters if tokenizer.knows(character)]
    if prompt == LINE_END and known:
        return known[0]
    found = ", ".join(map(name_character, unknown[:NAMED])) + ", ..." * (len(unknown) > NAMED) or "an empty text"
    msg = f"metrics.text.sampling.prompt: expected characters of the training text, got {found}"
    raise ArtifactError(msg)


def compose(loaded: Any, count: int, generator: torch.Generator, sampling: Any, length: int) -> list[str]:
    """Continue the prompt of `sampling` `count` times by `length` tokens, at its temperature, top-k and top-p."""
    import torch

    text = choose_prompt(loaded.tokenizer, sampling.prompt)
    prompt = torch.tensor(loaded.tokenizer.encode(text), dtype=torch.int64)
    choice = {name: getattr(sampling, name) for name in ("temperature", "top_k", "top_p")}
    tokens = loaded.model.sample(count, generator, {"prompt": prompt}, length=length, **choice)[loaded.model.makes]
    return [loaded.tokenizer.decode(row) for row in tokens.tolist()]


def stream(
    loaded: Any, generator: torch.Generator, sampling: Any, piece: int, pieces: int, unknown: str = "\ufffd"
) -> Iterator[str]:
    """Yield the prompt of `sampling`, and then its continuation in pieces of `piece` tokens, each when it is there.

    A character that is not complete yet, or that the tokenizer does not know, comes with the next piece.

    Raises:
        ArtifactError: as choose_prompt does, before anything is yielded.
    """
    import torch

    text = choose_prompt(loaded.tokenizer, sampling.prompt)
    yield text
    tokens = torch.tensor(loaded.tokenizer.encode(text), dtype=torch.int64)
    choice = {name: getattr(sampling, name) for name in ("temperature", "top_k", "top_p")}
    for index in range(pieces):
        known = tokens[-loaded.model.config.context :]
        longer = loaded.model.sample(1, generator, {"prompt": known}, length=piece, **choice)[loaded.model.makes]
        tokens = torch.cat([tokens, longer[0, len(known) :].cpu()])
        now = loaded.tokenizer.decode(tokens.tolist())
        now = now if index == pieces - 1 else now.rstrip(unknown)
        yield now[len(text) :]
        text = now


def show(name: str, texts: Sequence[str], loaded: Any) -> Exhibit:
    """Show texts as a YAML list, printable ones as literal blocks: `dvc plots` stumbles over a .txt."""
    from ruamel.yaml import YAML
    from ruamel.yaml.scalarstring import LiteralScalarString

    del loaded
    yaml = YAML(pure=True)
    yaml.width = 2**16
    buffer = io.BytesIO()
    yaml.dump([LiteralScalarString(text) if is_literal(text) else text for text in texts], buffer)
    return Exhibit(name, ".yaml", buffer.getvalue())


def is_literal(text: str) -> bool:
    """Say whether a YAML block can hold a text as it is."""
    return text.translate({ord("\n"): None, ord("\t"): None}).isprintable()


def draw_one(loaded: Any, generator: torch.Generator, sampling: Any) -> str:
    """Write one text."""
    return compose(loaded, 1, generator, sampling, PREVIEW_LENGTH)[0]


def to_file(name: str, text: str, loaded: Any) -> Exhibit:
    """Return one text as UTF-8."""
    del loaded
    return Exhibit(name, ".txt", text.encode("utf-8", "replace"))


def encode(loaded: Any, generator: torch.Generator, sampling: Any) -> str:
    """Write one text for the served model."""
    return draw_one(loaded, generator, sampling)


def look(loaded: Any, held_out: dict[str, Tensor], manifest: dict[str, Any], seed: int, sampling: Any) -> Look:
    """Show one text, and score the beginning of the validation split."""
    del manifest
    model = loaded.model
    [text] = compose(loaded, 1, make_generator(seed, "preview", device=model.device), sampling, PREVIEW_LENGTH)
    nats = model.score(held_out[model.makes][:PREVIEW_TOKENS], model.config.context)
    return Look([Exhibit("samples", ".txt", text.encode())], {"validation_nats": float(nats.mean())})


def find_alarms(newest: dict[str, tuple[int, float]], manifest: dict[str, Any]) -> list[str]:
    """Return a sentence if the newest preview predicts no better than a uniform guess."""
    chance = float(np.log(manifest["fields"]["tokens"]["vocabulary"]))
    if "validation_nats" not in newest or newest["validation_nats"][1] <= chance - LEARNT_NATS:
        return []
    step, nats = newest["validation_nats"]
    vocabulary = manifest["fields"]["tokens"]["vocabulary"]
    guess = f"a uniform guess has log({vocabulary}) = {chance:.3f}"
    return [f"step {step}: nothing learnt: validation {nats:.3f} nats, {guess}"]


def find_silent_alarms(held_out: dict[str, Tensor], manifest: dict[str, Any]) -> list[str]:
    """Return a sentence if the validation split is too short to tell a model that has learnt nothing."""
    del manifest
    count = len(held_out["tokens"])
    few = f"no verdict on learning: {count} validation tokens are too few, {LEAST_TOKENS} are needed"
    return [] if count >= LEAST_TOKENS else [few]


def draw(loaded: Any, sampling: Any, seed: int, manifest: dict[str, Any], read: Callable[[str], Any]) -> Drawn:
    """Write texts, and score every target of validation and test once.

    Files: nats (float64, one number per target, by split) and windows (float64, the mean of each random window).
    """
    model, context = loaded.model, loaded.model.config.context
    texts = compose(
        loaded, sampling.count, make_generator(seed, "sample", device=model.device), sampling, sampling.length
    )
    stride = max(1, round(sampling.stride * context))
    nats, windows = {}, {}
    for split in (name for name in SCORED if name in manifest["splits"]):
        tokens = read(split)[model.makes]
        nats[split] = model.score(tokens, stride).cpu()
        if sampling.random_windows:
            # All runs face the same windows.
            windows[split] = score_windows(model, tokens, sampling.random_windows, make_generator(0, "windows", split))
    files = {"nats": nats} | ({"windows": windows} if windows else {})
    return Drawn(files, [show("samples", texts, loaded)])


def score_windows(model: Any, tokens: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return the mean nats of `count` windows at random places of tokens (N,), float64 (count,).

    This is nanoGPT's estimate_loss: each window is scored by itself; half of its targets have less than half a context.
    """
    import torch

    from pipeline.layers.blocks import token_nats

    with torch.inference_mode():
        tokens = tokens.long().to(model.device)
        span = torch.arange(model.config.context + 1)
        starts = torch.randint(len(tokens) - model.config.context, (count, 1), generator=generator)
        network = model.kept.eval()
        means = []
        for part in (starts + span).split(max(1, 16_384 // len(span))):
            window = tokens[part.to(model.device)]  # (B, T + 1)
            means.append(token_nats(network(window[:, :-1]), window[:, 1:]).mean(dim=1).cpu())
        return torch.cat(means)
