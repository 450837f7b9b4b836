"""Music: pieces of voices on a grid of sixteenth notes, uint8 (N, F, V), padded with END after their last frame.

A number is the pitch of MIDI, or REST. A held note has its pitch in each frame, so the grid does not tell a held note
from a repeated one. A source's `prepare` returns Pieces; the stage `prepare` calls `write`.

Dimensions: N pieces, F frames (sixteenths) of a piece, V voices of a frame, from the highest, T tokens.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from pipeline import artifacts
from pipeline.artifacts import SPLITS, ArtifactError
from pipeline.formats.midi import encode_midi
from pipeline.formats.piano_roll import draw_rolls
from pipeline.formats.synthesizer import RATE, synthesize
from pipeline.formats.wav import encode_wav
from pipeline.kinds import Drawn, Exhibit, FieldSpec, Look, dump_fields, question_examples
from pipeline.params import Source
from pipeline.randomness import make_generator

if TYPE_CHECKING:
    from numpy.typing import NDArray

PITCHES = 128
REST, END = 128, 129
VOCABULARY = 130
BAR = 16  # frames of a bar of four quarters; of other pieces, of four beats
IGNORED = -100  # target of a padded place, which no loss counts
SCORED = ("validation", "test")
HEARD = 4  # pieces of an exhibit
HEARD_FRAMES = 8 * BAR  # of each piece in a sound, which a page holds as a whole
COMPLETED = 2  # test pieces whose first voice is kept, and the others drawn
PREVIEW_FRAMES = 8 * BAR
PREVIEW_PIECES = 8  # of the validation split that a preview scores
SAMPLING = {"frames": 16 * BAR, "temperature": 1.0, "top_k": 0, "top_p": 1.0}  # of one piece, without a run's own
LEARNT_NATS = 0.05  # by which a model must beat a uniform guess


class Spec(FieldSpec):
    """Voices V of a piece."""

    kind: Literal["music"] = "music"
    voices: int = Field(ge=1)


class MusicConfig(Source):
    """Keys that every music source shares, so that changing `source` suffices to change the data of a run."""

    KIND: ClassVar = "music"

    transpose: int = Field(
        ge=0,
        le=12,
        description="semitones up and down by which each training piece is added, where every voice stays in its range",
    )


@dataclass(frozen=True)
class Pieces:
    """The pieces of each split, uint8 (F, V) each."""

    splits: Mapping[str, Sequence[NDArray[np.uint8]]]


def write(folder: Path, pieces: Pieces, config: MusicConfig) -> dict[str, Any]:
    """Write each split's pieces, the training split with its transpositions; return the manifest.

    Files: notes uint8 (N, F, V), and shifts int8 (N,), the semitones by which a piece was transposed.

    Raises:
        ArtifactError: if a split has no piece, or one is not uint8 (F, V) of pitches and rests.
    """
    entries: dict[str, Any] = {}
    known: dict[str, set[bytes]] = {}
    for name in SPLITS:
        own = pieces.splits.get(name, ())
        for place, piece in enumerate(own):
            check_piece(f"{folder} {name} {place}", piece)
        if not own:
            msg = f"{folder}: the {name} split has no piece, expected 1 or more"
            raise ArtifactError(msg)
        pairs = transpose(own, config.transpose if name == "train" else 0)
        notes = pad([piece for _, piece in pairs])
        path = folder / f"{name}.safetensors"
        artifacts.write_tensors(
            path, {"notes": notes, "shifts": torch.tensor([shift for shift, _ in pairs], dtype=torch.int8)}
        )
        digests = {blake2b(piece.tobytes(), digest_size=16).digest() for _, piece in pairs}
        played = np.concatenate([piece[piece < PITCHES] for piece in own])
        entries[name] = {
            "sha256": artifacts.digest(path),
            "count": len(pairs),
            "originals": len(own),
            "frames": sum(map(len, own)),
            "notes": sum(piece.size for piece in own),
            "rests": sum(int((piece == REST).sum()) for piece in own),
            "minimum": int(played.min()),
            "maximum": int(played.max()),
            "duplicates": len(pairs) - len(digests),
            **{f"shared_with_{other}": len(digests & seen) for other, seen in known.items()},
        }
        known[name] = digests
    fields = make_fields(pieces.splits["train"][0].shape[1])
    return {"fields": dump_fields(fields), "splits": entries}


def check_piece(name: str, piece: NDArray[np.uint8]) -> None:
    """Refuse an array that is no piece.

    Raises:
        ArtifactError: with the name, what was expected, and what came.
    """
    if piece.dtype != np.uint8 or piece.ndim != 2 or not piece.size or piece.max() > REST:
        found = f"{piece.dtype} {piece.shape}" + (f" up to {piece.max()}" if piece.size else "")
        msg = f"{name}: expected a piece uint8 (F, V) of pitches below {PITCHES} and rests {REST}, got {found}"
        raise ArtifactError(msg)
    if not (piece < PITCHES).any():
        msg = f"{name}: expected a piece with a note, got {len(piece)} frames of rests"
        raise ArtifactError(msg)


def transpose(pieces: Sequence[NDArray[np.uint8]], most: int) -> list[tuple[int, NDArray[np.uint8]]]:
    """Return each piece, uint8 (F, V), by shifts of up to `most` semitones that keep the ranges of its voices.

    The range of a voice is from its lowest to its highest pitch in all pieces. The shift 0 comes first.
    """
    ranges = find_ranges(pieces)
    found = []
    for shift in sorted(range(-most, most + 1), key=abs):
        for piece in pieces:
            played = piece < PITCHES
            moved = np.where(played, piece.astype(np.int16) + shift, piece)
            inside = (moved >= ranges[:, 0]) & (moved <= ranges[:, 1])
            if (inside | ~played).all():
                found.append((shift, moved.astype(np.uint8)))
    return found


def find_ranges(pieces: Sequence[NDArray[np.uint8]]) -> NDArray[np.int16]:
    """Return the lowest and the highest pitch of each voice in pieces uint8 (F, V), (V, 2)."""
    voices = np.concatenate(pieces).astype(np.int16).T
    return np.array(
        [[voice[voice < PITCHES].min(initial=PITCHES), voice[voice < PITCHES].max(initial=0)] for voice in voices]
    )


def pad(pieces: Sequence[NDArray[np.uint8]]) -> Tensor:
    """Return pieces uint8 (F, V) of different lengths as one tensor (N, F, V), with END after each."""
    notes = np.full((len(pieces), max(map(len, pieces)), pieces[0].shape[1]), END, dtype=np.uint8)
    for row, piece in zip(notes, pieces, strict=True):
        row[: len(piece)] = piece
    return torch.from_numpy(notes)


def trim(piece: Tensor) -> Tensor:
    """Return a piece (F, V) without the frames after its end."""
    return piece[: int((piece[:, 0] != END).sum())]


def to_tokens(notes: Tensor) -> Tensor:
    """Return pieces uint8 (N, F, V) as int64 (N, F V + 2): END, the notes frame by frame, END."""
    return torch.nn.functional.pad(notes.flatten(1).long(), (1, 1), value=END)


def question_data(data: str, manifest: dict[str, Any], config: MusicConfig) -> list[str]:
    """Return a sentence for everything about a set that is perhaps not what the user meant, with the key to change."""
    return question_examples(data, manifest, config)


def show_data(folder: Path, manifest: dict[str, Any]) -> Exhibit:
    """Show the first pieces of the training split as piano rolls."""
    del manifest
    notes = artifacts.read_tensors(folder / "train.safetensors")["notes"][:HEARD]
    return Exhibit("sheet", ".png", draw_rolls([trim(piece).numpy() for piece in notes]))


def make_fields(voices: int) -> dict[str, FieldSpec]:
    """Return the field of a set of pieces."""
    return {"notes": Spec(voices=voices)}


def examples(split: dict[str, Tensor], config: Any, seed: int) -> Excerpts:
    """Return the training examples of a split."""
    return Excerpts(split["notes"], config.context, seed)


class Excerpts:
    """Windows of `context` tokens, one of each piece per epoch, from the beginning of a bar that differs by epoch.

    A window never has tokens of two pieces. It is padded with targets that do not count.
    """

    def __init__(self, notes: Tensor, context: int, seed: int) -> None:
        self.tokens = to_tokens(notes)  # (N, T)
        self.sizes = (self.tokens[:, 1:-1] != END).sum(dim=1) + 2  # (N,)
        self.tokens = torch.nn.functional.pad(self.tokens, (0, context + 1), value=END)
        self.bar = BAR * notes.size(2)
        self.context = context
        self.seed = seed

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, indices: Tensor, epoch: int) -> dict[str, Tensor]:
        """Return inputs and targets int64 (B, T): targets are the inputs' next tokens, IGNORED after the end."""
        draws = torch.rand(len(self), generator=make_generator(self.seed, "offset", epoch))[indices]
        starts = (self.sizes[indices] - 1 - self.context).clamp(min=0)  # of the latest window that is not padded
        bars = (draws * (-(-starts // self.bar) + 1)).long()
        places = bars[:, None] * self.bar + torch.arange(self.context + 1)  # (B, T + 1)
        windows = self.tokens[indices].gather(1, places)
        targets = windows[:, 1:].masked_fill(places[:, 1:] >= self.sizes[indices, None], IGNORED)
        return {"inputs": windows[:, :-1].contiguous(), "targets": targets}


def check(name: str, notes: Tensor) -> None:
    """Refuse pieces that would give a plausible number for nonsense.

    Args:
        name: of the pieces, for the message.
        notes: uint8 (N, F, V).

    Raises:
        ArtifactError: if they are no pieces, or a piece ends in one voice only, or goes on after its end.
    """
    if notes.dtype != torch.uint8 or notes.ndim != 3 or int(notes.max()) > END:
        msg = f"{name}: expected pieces uint8 (N, F, V) up to {END}, got {notes.dtype} {tuple(notes.shape)}"
        raise ArtifactError(msg)
    ended = notes == END
    if not torch.equal(ended, ended[..., :1].expand_as(ended)) or bool((ended[:, 1:] < ended[:, :-1]).any()):
        msg = f"{name}: expected pieces whose voices end together and once"
        raise ArtifactError(msg)


def show(name: str, notes: Tensor, loaded: Any) -> Exhibit:
    """Let the first pieces of uint8 (N, F, V) be heard, eight bars of each."""
    del loaded
    return _play(name, list(notes[:HEARD]))


def _play(name: str, pieces: Sequence[Tensor]) -> Exhibit:
    sounds = [synthesize(trim(piece)[:HEARD_FRAMES].numpy()) for piece in pieces]
    return Exhibit(name, ".wav", encode_wav(np.concatenate(sounds), RATE))


def exhibit(name: str, pieces: Sequence[Tensor]) -> list[Exhibit]:
    """Return pieces (F, V) as a picture, as sound (eight bars of each), and as MIDI, one after the other."""
    trimmed = [trim(piece).numpy() for piece in pieces]
    return [
        Exhibit(name, ".png", draw_rolls(trimmed)),
        _play(name, pieces),
        Exhibit(name, ".mid", encode_midi(trimmed)),
    ]


def to_file(name: str, piece: Tensor, loaded: Any) -> Exhibit:
    """Return one piece (F, V) as MIDI."""
    del loaded
    return Exhibit(name, ".mid", encode_midi([trim(piece).numpy()]))


def draw_one(loaded: Any, generator: torch.Generator, sampling: Any) -> Tensor:
    """Draw one piece, uint8 (F, V), on the CPU."""
    return compose(loaded, 1, generator, sampling)[0]


def compose(loaded: Any, count: int, generator: torch.Generator, sampling: Any, **changes: Any) -> Tensor:
    """Draw `count` pieces as `sampling` says, uint8 (N, F, V), on the CPU.

    changes: settings of the model's `sample`, such as frames, or the notes that are kept.
    """
    settings = {name: getattr(sampling, name) for name in SAMPLING} | changes
    notes: Tensor = loaded.model.sample(count, generator, {}, **settings)[loaded.model.makes]
    return notes.cpu()


def harmonise(loaded: Any, piece: Tensor, generator: torch.Generator, sampling: Any) -> Tensor:
    """Draw all voices of a piece (F, V) but the first, which is kept; uint8 (F, V)."""
    kept = trim(piece).clone()
    kept[:, 1:] = END
    return compose(loaded, 1, generator, sampling, frames=len(kept), kept=kept)[0]


def encode(loaded: Any, generator: torch.Generator, sampling: Any) -> str:
    """Draw one piece for the served model: MIDI as base64."""
    return base64.b64encode(to_file("", draw_one(loaded, generator, sampling), loaded).content).decode()


def look(loaded: Any, held_out: dict[str, Tensor], manifest: dict[str, Any], seed: int, sampling: Any) -> Look:
    """Show the beginning of one piece, and score the first pieces of the validation split."""
    del manifest
    model, stride = loaded.model, loaded.model.config.context // 2
    generator = make_generator(seed, "preview", device=model.device)
    piece = compose(loaded, 1, generator, sampling, frames=PREVIEW_FRAMES)[0]
    nats = torch.cat([model.score(trim(each), stride) for each in held_out[model.makes][:PREVIEW_PIECES]])
    shown = Exhibit("samples", ".png", draw_rolls([trim(piece).numpy()]))
    return Look([shown], {"validation_nats": float(nats.mean())})


def find_alarms(newest: dict[str, tuple[int, float]], manifest: dict[str, Any]) -> list[str]:
    """Return a sentence if the newest preview predicts no better than a uniform guess."""
    del manifest
    chance = float(np.log(VOCABULARY))
    step, nats = newest.get("validation_nats", (0, 0.0))
    if nats <= chance - LEARNT_NATS:
        return []
    return [f"step {step}: nothing learnt: validation {nats:.3f} nats, a uniform guess has {chance:.3f}"]


def find_silent_alarms(held_out: dict[str, Tensor], manifest: dict[str, Any]) -> list[str]:
    """Return nothing: one piece has enough notes."""
    del held_out, manifest
    return []


def draw(loaded: Any, sampling: Any, seed: int, manifest: dict[str, Any], read: Callable[[str], Any]) -> Drawn:
    """Draw pieces, complete the lower voices of test pieces, and score validation and test.

    Files: note_nats (float64, by split: of each piece in turn its notes and its end), and generated (uint8 (N, F, V)).
    """
    model = loaded.model
    notes = compose(loaded, sampling.count, make_generator(seed, "sample", device=model.device), sampling)
    stride = max(1, round(sampling.stride * model.config.context))
    nats, pairs = {}, []
    for split in (name for name in SCORED if name in manifest["splits"]):
        pieces = read(split)[model.makes]
        nats[split] = torch.cat([model.score(trim(piece), stride).cpu() for piece in pieces])
    for index, piece in enumerate(pieces[:COMPLETED]):
        generator = make_generator(seed, "completion", index, device=model.device)
        pairs += [piece, harmonise(loaded, piece, generator, sampling)]
    exhibits = [*exhibit("samples", list(notes[:HEARD])), *exhibit("harmonisations", pairs)]
    return Drawn({"note_nats": nats, "generated": {"0": notes}}, exhibits)
