"""Decodes one sound file, whatever its rate and channels, to samples of one channel, or says why not.

    with open_file(path) as file:
        sound = decode(file, Limits())

libsndfile reads the files, in the package soundfile. The content decides what a file is, not its name; its header is
judged before anything is decoded. audio_folder.py uses it.

Dimensions: T samples of a recording, C channels.
"""

import re
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import soundfile
from numpy.typing import NDArray
from pydantic import Field

from pipeline.params import Section

ENDINGS = {  # the formats that are opened, and how their files are named
    "WAV": {".wav", ".wave"},
    "WAVEX": {".wav"},
    "RF64": {".rf64", ".wav"},
    "FLAC": {".flac"},
    "OGG": {".ogg", ".oga", ".opus"},
    "MP3": {".mp3"},
    "AIFF": {".aiff", ".aif", ".aifc"},
}
RATES = (1_000, 384_000)  # lowest and highest of a file, in samples per second
CHANNELS = 32  # at most
SILENT = 1e-3  # of the range; a recording that stays below is silent
SHORTEST = 0.02  # seconds: a period of the lowest tone that sounds like one
BLOCK = 1 << 18  # values that are decoded at once
CUT_OFF = re.compile(r"^ *(?:data|SSND) : (\d+) \(should be (\d+)\)", re.MULTILINE)  # bytes announced, bytes there
UNKNOWN = 2**31 - 2**16  # bytes, from which on a size is what programs announce that do not know it yet
MP3_PADDING = 2 * 1152  # samples; without a Xing header libsndfile estimates the length of an MP3 from its bytes
RAW = (soundfile.LibsndfileError, TypeError)  # TypeError: named .raw, so that soundfile expects no header


class Limits(Section):
    """Which recordings are refused."""

    max_minutes: float = Field(20.0, gt=0, description="refuse longer recordings, before they are decoded")
    max_clipped: float = Field(
        0.01, ge=0, le=1, description="share of a recording's samples at full scale, above which it is not used"
    )


@dataclass(frozen=True)
class Sound:
    """Samples float64 (T,) in [-1, 1], or None and the reason; mode and note as in FileReport.

    rate: samples per second of the file. clipped: share of its samples that are as loud as can be.
    """

    samples: NDArray[np.float64] | None
    mode: str = ""
    note: str = ""
    reason: str = ""
    rate: int = 0
    clipped: float = 0.0


def decode(file: BinaryIO, limits: Limits) -> Sound:
    """Return the sound of an open file, its channels mixed down to their mean."""
    file.seek(0)
    start = file.read(16)
    file.seek(0)
    try:
        with soundfile.SoundFile(file) as opened:
            return _decode(opened, limits)
    except RAW as error:
        if "decod" in str(error) or "malformed" in str(error):
            return Sound(None, reason=f"cannot be decoded: {str(error).rpartition(': ')[2].rstrip('.')}")
        return Sound(None, reason=f"no readable sound of a known format, it begins with {start!r}")


def _decode(opened: soundfile.SoundFile, limits: Limits) -> Sound:
    rate, channels, frames = opened.samplerate, opened.channels, opened.frames
    seconds = frames / max(rate, 1)
    mode = f"{opened.format} {opened.subtype}, {rate} Hz, {channels} channel{'s' * (channels > 1)}, {seconds:.2f} s"
    cut_off = [(int(said), int(there)) for said, there in CUT_OFF.findall(opened.extra_info)]
    reason = ""
    if opened.format not in ENDINGS:
        reason = f"{opened.format} files are not read, expected one of {', '.join(ENDINGS)}"
    elif not RATES[0] <= rate <= RATES[1]:
        reason = f"{rate} samples per second, expected {RATES[0]} to {RATES[1]}"
    elif channels > CHANNELS:
        reason = f"{channels} channels, expected {CHANNELS} at most"
    elif any(there < said < UNKNOWN for said, there in cut_off):
        reason = f"cut off: {cut_off[0][1]} of {cut_off[0][0]} bytes of sound are there"
    elif seconds > 60 * limits.max_minutes:
        reason = f"{seconds / 60:.1f} minutes long, allowed are {limits.max_minutes:g} (max_minutes)"
    elif seconds < SHORTEST:
        reason = f"{seconds:.3f} s long, expected {SHORTEST} s or more"
    return Sound(None, mode, reason=reason) if reason else _mix(opened, mode, limits)


def _mix(opened: soundfile.SoundFile, mode: str, limits: Limits) -> Sound:
    """Decode a file, block by block, and judge its samples."""
    loudest = 1 - 2.0**-7 if opened.subtype in {"PCM_U8", "PCM_S8"} else 1 - 2.0**-15
    parts, full, peak = [], 0, 0.0
    while len(block := opened.read(BLOCK // opened.channels, dtype="float64", always_2d=True)):  # (T, C)
        size = np.abs(block)
        full += int((size >= loudest).sum())
        peak = max(peak, float(size.max()))
        parts.append(block.mean(axis=1))
    values = np.concatenate(parts) if parts else np.zeros(0)
    clipped = full / max(len(values) * opened.channels, 1)
    reason = ""
    if len(values) < opened.frames - (MP3_PADDING if opened.format == "MP3" else 0):
        reason = f"cut off: {len(values)} of {opened.frames} samples are there"
    elif not np.isfinite(values).all():
        reason = f"sample {int(np.argmin(np.isfinite(values)))} is not a finite number"
    elif peak < SILENT:
        reason = f"silent: no sample is above {SILENT:.1%} of the range"
    elif np.abs(values).max() < SILENT:
        reason = "silent once its channels are mixed: they cancel one another"
    elif clipped > limits.max_clipped:
        reason = f"clipped: {clipped:.1%} of the samples are at full scale, allowed are {limits.max_clipped:.1%}"
    note = f"{opened.channels} channels mixed into one" if opened.channels > 1 else ""
    return Sound(None if reason else values, mode, note, reason, opened.samplerate, clipped)
