"""audio_folder: a folder of your own recordings, of any length, rate and format; its subfolders are the classes.

    pipeline own ~/sounds                        # writes the sections that fit

`fetch` lists every file with its SHA-256, `prepare` decodes exactly what is listed; the recordings stay where they are.
Folders mean what they mean to `image_folder`: wrappers, splits, classes. Where no folder says the split, it is a
function only of `split_seed` and of what the set holds of the recording. So a new recording moves no other, all clips
of one recording are in one split, and no two splits share one. files.json names the reason of each unused file.

Channels are mixed down to one, the rate becomes that of the config, the peak 0.9 of the range. A recording that is
shorter than a clip is centred in silence. For a longer one the key `long` decides. `cut` takes as many whole clips as
it has, one after the other, from where they are loudest, and leaves out silent ones. `loudest` takes one clip.
"""

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Literal

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from pydantic import Field

from pipeline.artifacts import SPLITS
from pipeline.formats.folders import Folders
from pipeline.formats.own_files import FileReport, list_files
from pipeline.formats.own_folders import OwnFolder, list_folder, may_have_classes
from pipeline.formats.recordings import centre, describe_changes, find_loudest, resample, scale
from pipeline.formats.sounds import ENDINGS, Limits, decode
from pipeline.kinds import FieldSpec
from pipeline.kinds.audio import AudioConfig, Clips, is_silent, make_fields

SHAPED_BY = ("samples", "rate")
SOUNDS = set().union(*ENDINGS.values())
LOOKED_AT = 30  # recordings by which `suggest` judges a folder
SAMPLES, RATE = 8192, 8000  # of the clips that it suggests, of which every model can learn
FEWEST = 50  # clips that metrics compare
LOST = 1e-4  # share of the power that resampling must leave
SOME_CLIPPED = 1e-3  # share of the samples at full scale from which on a recording counts as clipped in parts


class Config(AudioConfig, Limits):
    """How the recordings become clips, and how they are split."""

    READS_PATH: ClassVar = True

    source: Literal["audio_folder"]
    folders: Folders = Field(
        "auto", description="what they mean: splits and classes (auto), only classes, only splits, or none of them"
    )
    long: Literal["cut", "loudest"] = Field(
        "cut", description="of a recording longer than a clip: cut it into clips, or keep the loudest clip"
    )
    max_broken: float = Field(0.01, ge=0, lt=1, description="share of the files that may be broken")


@dataclass(frozen=True)
class Recording:
    """Clips int16 (N, samples) of a file, none with a reason; mode and note as in FileReport.

    rate: of the file, in samples per second. seconds: its length. left_out: seconds that no clip has. silent: clips
    that were left out as silent. clipped: share of its samples at full scale.
    """

    mode: str
    note: str
    reason: str
    clips: NDArray[np.int16] | None = None
    rate: int = 0
    seconds: float = 0.0
    left_out: float = 0.0
    silent: int = 0
    clipped: float = 0.0


def foresee(config: Config) -> dict[str, FieldSpec]:
    """Return the fields of the clips; there may be two classes, until they are counted, unless no folder names one."""
    return make_fields(config.samples, config.rate, 2 if may_have_classes(config) else 1)


def suggest(path: Path) -> tuple[int, dict[str, Any], str] | None:
    """Return for the recordings of a folder their number, keys of a section, and what was seen; None without any.

    The share of the test is one tenth, or what leaves the clips in it that metrics compare.
    """
    if not path.is_dir():
        return None
    files = [(name, file) for name, file in list_files(path) if Path(name).suffix.lower() in SOUNDS]
    seen = []
    for _, file in files[:: len(files) // LOOKED_AT + 1]:
        with suppress(soundfile.LibsndfileError, OSError):
            seen.append(soundfile.info(file))
    if not seen:
        return None
    seconds = sorted(each.duration for each in seen)
    rates = Counter(each.samplerate for each in seen)
    test = max(0.1, min(round(1.5 * FEWEST / len(files), 2), 0.6))
    keys = {"split_seed": 0, "validation": 0.1, "test": test, "samples": SAMPLES, "rate": RATE}
    lengths = f"{seconds[0]:.1f} to {seconds[-1]:.1f} s"
    return len(files), keys, f"{len(files)} recordings of {lengths}, most at {rates.most_common(1)[0][0]} Hz"


def fetch(folder: Path, config: Config) -> None:
    """List every folder below `config.path`, and every file with its size and SHA-256, in files.json.

    Raises:
        ArtifactError: if `config.path` is not a folder, or has no file, or a folder below it cannot be read.
    """
    list_folder(folder, config.path, "list recordings")


def prepare(raw: Path, config: Config) -> Clips:
    """Decode the listed recordings into memory-mapped clips of each split, in the listing's order.

    Raises:
        ArtifactError: if a file is not the listed one, too many are broken, or a split would be empty.
    """
    own = OwnFolder(raw, config, SOUNDS, "recording")
    recordings: dict[str, Recording] = {}
    with ExitStack() as stack:
        # Nameless temporary files in the folder of the raw ones: none is left, however the stage ends.
        stores = {name: stack.enter_context(tempfile.TemporaryFile(dir=raw.parent)) for name in SPLITS}
        sorting = own.sort(_cut_all(own, config, recordings), stores)
        found = own.finish(sorting, stores, (config.samples,), np.int16)
    used = [recordings[report.path] for report in found.files if report.split]
    known = {**_count(used), **found.known}
    return Clips(found.splits, found.names, "your own recordings", _describe(used, config), found.files, known)


def _cut_all(own: OwnFolder, config: Config, recordings: dict[str, Recording]) -> Iterator[tuple[FileReport, bytes]]:
    """Yield each file's report and its clips, none where it cannot be used, and note what became of it."""
    for report, recording in own.decode(lambda file, _: read(file, config)):
        if recording is None:
            yield report, b""
            continue
        recordings[report.path] = replace(recording, clips=None)
        judged = replace(report, mode=recording.mode, note=recording.note, reason=recording.reason)
        yield judged, b"" if recording.clips is None else recording.clips.tobytes()


def read(file: BinaryIO, config: Config) -> Recording:
    """Decode an open file and cut it into clips."""
    sound = decode(file, config)
    if sound.samples is None:
        return Recording(sound.mode, sound.note, sound.reason)
    values = resample(sound.samples, sound.rate, config.rate)
    if np.square(values).mean() < LOST * np.square(sound.samples).mean():
        reason = f"silent at {config.rate} samples per second: it has nothing below {config.rate / 2:g} Hz"
        return Recording(sound.mode, sound.note, reason)
    count = max(1, len(values) // config.samples) if config.long == "cut" else 1
    kept = scale(find_loudest(values, count * config.samples))
    clips = centre(kept, config.samples)[None] if count == 1 else kept.reshape(count, config.samples)
    loud = clips[~is_silent(torch.from_numpy(clips)).numpy()]
    seconds = len(values) / config.rate
    left_out = max(0.0, seconds - len(loud) * config.samples / config.rate)
    notes = [sound.note] if sound.note else []
    notes += [f"resampled from {sound.rate} Hz"] if sound.rate != config.rate else []
    notes += (
        [f"{len(loud)} clip{'s' * (len(loud) > 1)}, {left_out:.2f} s left out"] if len(values) > config.samples else []
    )
    return Recording(
        sound.mode, "; ".join(notes), "", loud, sound.rate, seconds, left_out, count - len(loud), sound.clipped
    )


def _count(used: Sequence[Recording]) -> dict[str, Any]:
    """Return what the manifest says of the recordings: their rates, seconds, and what is clipped or left out."""
    seconds = sorted(each.seconds for each in used)
    places = {"shortest": 0.0, "median": 0.5, "95%": 0.95, "longest": 1.0}
    lengths = {name: round(seconds[int(place * (len(seconds) - 1))], 3) for name, place in places.items()}
    rates = {str(rate): count for rate, count in sorted(Counter(each.rate for each in used).items())}
    left_out = {
        "share": round(sum(each.left_out for each in used) / sum(seconds), 3),
        "silent_clips": sum(each.silent for each in used),
    }
    known: dict[str, Any] = {"seconds": lengths, "rates": rates}
    known |= {"left_out": left_out} if any(left_out.values()) else {}
    clipped = sum(each.clipped > SOME_CLIPPED for each in used)
    return known | ({"clipped": clipped} if clipped else {})


def _describe(used: Sequence[Recording], config: Config) -> list[str]:
    """Return sentences on what was done to the recordings."""
    resampled = sum(each.rate != config.rate for each in used)
    mixed = sum("channels" in each.note for each in used)
    longer = [each for each in used if each.seconds > config.samples / config.rate]
    done = "cut into clips" if config.long == "cut" else "cut to their loudest clip"
    left_out = sum(each.left_out for each in longer)
    changes = {
        f"{mixed} recordings of several channels mixed into one": mixed,
        f"{resampled} recordings resampled to {config.rate} samples per second": resampled,
        f"{len(longer)} recordings longer than a clip {done}, {left_out:.1f} s left out": len(longer),
    }
    return [*(change for change, count in changes.items() if count), *describe_changes(config.samples)]
