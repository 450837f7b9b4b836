"""Decodes one picture file, whatever it holds, to uint8 (C, size, size), or says why not; image_folder.py uses it.

    with open_file(path) as file:
        picture = decode(file, path.name, Look(size=32))

The content decides what a file is, not its name; its header is judged before anything is decoded. Colour profiles are
ignored. One picture does not tell which value is white where its file does not state it, nor which ground shows the
parts that are not transparent: `Survey` decides both for a whole set. Pillow warns of what the report of a file says
anyway: whoever calls this silences it, once for all threads.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import BinaryIO, Literal, TypeVar

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from pydantic import Field

from pipeline.artifacts import ArtifactError
from pipeline.formats.own_files import open_file
from pipeline.params import Section

ENDINGS = {  # the formats that are opened, and how their files are named
    "PNG": {".png", ".apng"},
    "JPEG": {".jpg", ".jpeg", ".jpe", ".jfif"},
    "GIF": {".gif"},
    "BMP": {".bmp", ".dib"},
    "TIFF": {".tif", ".tiff"},
    "WEBP": {".webp"},
    "PPM": {".ppm", ".pgm", ".pbm", ".pnm", ".pfm"},
    "MPO": {".mpo", ".jpg", ".jpeg"},  # what Pillow calls a JPEG with further pictures behind the first
}
EIGHT_BITS = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr"}
TURNS = {  # EXIF 2.3, tag Orientation: what brings the stored rows and columns upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
TURNED = "turned as its EXIF data say"
WHITE = 65535  # of 16 bits; pictures of 8 bits are divided by 255 at most
DARK = 127.5  # ink below is dark
TIFF_PHOTOMETRIC = 262
TIFF_TILE = (322, 323)  # width and length


class Look(Section):
    """How a picture becomes an image of the set."""

    size: int = Field(64, ge=1, le=4096, description="pixels per side of the square images")
    channels: Literal[1, 3] = Field(3, description="1 for grey (ITU-R 601 luma), 3 for red, green and blue")
    filter: Literal["lanczos", "bicubic", "bilinear", "box", "nearest"] = Field("lanczos", description="how to resize")
    fit: Literal["crop", "pad"] = Field("crop", description="what makes it square: its centre, or bars of background")
    background: int | None = Field(
        None, ge=0, le=255, description="grey level behind transparent pixels and next to padded ones; none: by the ink"
    )
    white: int | None = Field(
        None, ge=1, le=WHITE, description="value that is white where a file states none; none: by the bits in use"
    )
    # Pillow itself refuses from 179 megapixels on.
    max_megapixels: float = Field(50.0, gt=0, le=178, description="refuse larger pictures, before they are decoded")


LookType = TypeVar("LookType", bound=Look)


@dataclass(frozen=True)
class Picture:
    """Pixels uint8 (C, size, size), or None and the reason; mode and note as in FileReport.

    highest: the largest value in the file, unless the file states which value is white. deep: whether such values have
    more than 8 bits. ink: the mean grey level of what is visible, if a part is not.
    """

    pixels: np.ndarray | None
    mode: str = ""
    note: str = ""
    reason: str = ""
    highest: int | None = None
    deep: bool = False
    ink: float | None = None


@dataclass
class Survey:
    """What the pictures of a set say together about their white and their ground."""

    highest: int = 0
    deep: int = 0
    transparent: int = 0
    ink: float = 0.0

    def add(self, picture: Picture) -> None:
        """Take one picture into account."""
        self.highest = max(self.highest, picture.highest or 0)
        self.deep += picture.deep
        if picture.ink is not None:
            self.transparent += 1
            self.ink += picture.ink

    def settle(self, look: LookType) -> LookType:
        """Return the look with the white and the background that it leaves open.

        White is the largest number of as many bits as the set uses: 4095 of 12-bit scans in 16 bits, 1 of masks. Of
        pictures that have 8 bits it is 255. The ground is white where the visible ink is dark, else black.
        """
        bits = (1 << self.highest.bit_length()) - 1
        white = 1 if self.highest == 1 else max(255, bits) if self.deep else WHITE
        ground = 255 if self.transparent and self.ink / self.transparent < DARK else 0
        return look.model_copy(
            update={
                "white": white if look.white is None else look.white,
                "background": ground if look.background is None else look.background,
            }
        )


@dataclass(frozen=True)
class _Stored:
    """What the file's header says of its values beyond Pillow's mode."""

    raw: str  # Pillow's name of the layout in the file, such as RGB;16B
    white_is_zero: bool
    format: str


class _RefusedError(Exception):
    """The picture cannot be used; the message says why."""


def decode(file: BinaryIO, name: str, look: Look) -> Picture:
    """Decode the picture in an open file; `name` is only asked for its ending.

    Without `white` in the look it is 65535, and without `background` black: `Survey` says what fits a set.

    A header that promises too many pixels is refused before memory is taken for them. Of an animation or a file of
    several pages the first is used. MemoryError passes through: it tells of the machine, not of the file.
    """
    mode = ""
    look = Survey().settle(look)
    try:
        image = _open(file, look)
        mode = f"{image.mode} {image.width}x{image.height} {image.format}"
        stored = _read_stored(image)
        notes = _note(image, name, stored)
        loaded, turned = _load(image)
        scaled = _scale(loaded, stored, look)
        flat, ink = _flatten(scaled.image, look)
        flat = _fit(flat, look)
    except _RefusedError as error:
        return Picture(None, mode, reason=str(error))
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - what damaged bytes make Pillow raise has no common base
        return Picture(None, mode, reason=f"cannot be decoded: {str(error) or type(error).__name__}")
    pixels = np.asarray(flat)[None] if look.channels == 1 else np.asarray(flat).transpose(2, 0, 1)
    note = ", ".join([*notes, *turned])
    return Picture(np.ascontiguousarray(pixels), mode, note, highest=scaled.highest, deep=scaled.deep, ink=ink)


def read_settled(files: Sequence[Path], look: Look) -> list[np.ndarray]:
    """Decode pictures to uint8 (C, size, size), by the white and the ground that fit them together.

    Raises:
        ArtifactError: naming the file that cannot be read, and why.
    """

    def read(file: Path, look: Look) -> Picture:
        try:
            with open_file(file) as opened:
                picture = decode(opened, file.name, look)
        except OSError as error:
            msg = f"{file}: cannot be read: {error.strerror}"
            raise ArtifactError(msg) from error
        if picture.pixels is None:
            msg = f"{file}: {picture.reason}"
            raise ArtifactError(msg)
        return picture

    survey = Survey()
    for file in files:
        survey.add(read(file, look))
    settled = survey.settle(look)
    return [pixels for file in files if (pixels := read(file, settled).pixels) is not None]


def _open(file: BinaryIO, look: Look) -> Image.Image:
    """Read the header and judge it."""
    try:
        image = Image.open(file, formats=[name for name in ENDINGS if name != "MPO"])
    except UnidentifiedImageError as error:  # its message holds the address of an object
        file.seek(0)
        msg = f"no readable picture of a known format, it begins with {file.read(16)!r}"
        raise _RefusedError(msg) from error
    except Image.DecompressionBombError as error:
        msg = f"more than {look.max_megapixels:g} megapixels: {error}"
        raise _RefusedError(msg) from error
    for what, (width, height) in {"": image.size, "tiles of ": _read_tags(image, *TIFF_TILE)}.items():
        if width * height / 1e6 > look.max_megapixels:
            msg = f"{what}{width}x{height} pixels are more than {look.max_megapixels:g} megapixels"
            raise _RefusedError(msg)
    return image


def _read_tags(image: Image.Image, *tags: int) -> list[int]:
    """Return whole numbers of a TIFF file's header, 0 for those that it or another format has not."""
    values = getattr(image, "tag_v2", {})
    return [value if isinstance(value := values.get(tag), int) else 0 for tag in tags]


def _read_stored(image: Image.Image) -> _Stored:
    tiles = getattr(image, "tile", [])
    first = tiles[0][3] if tiles else ""
    raw = first[0] if isinstance(first, tuple) and first else first
    inverted = image.format == "TIFF" and getattr(image, "tag_v2", {}).get(TIFF_PHOTOMETRIC) == 0
    return _Stored(str(raw), inverted, str(image.format))


def _note(image: Image.Image, name: str, stored: _Stored) -> list[str]:
    """Say what a user may not expect of the file."""
    notes = []
    ending = PurePath(name).suffix
    if ending.lower() not in ENDINGS[stored.format]:
        notes.append(f"named {ending!r}, holds {stored.format}" if ending else f"no ending, holds {stored.format}")
    frames = getattr(image, "n_frames", 1)  # asked before the first is loaded: it moves the position
    if frames > 1:
        notes.append(f"first of {frames} frames")
    if ";16" in stored.raw and image.mode in EIGHT_BITS:
        notes.append("upper 8 of 16 bits a channel")
    if image.mode == "I" and stored.format != "PPM":  # PPM files are scaled to 16 bits by Pillow
        notes.append("32-bit integers taken for 16 bits")
    return notes


def _load(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """Decode the pixels and turn them upright; return them with what was done."""
    turned = _read_tags(image, ExifTags.Base.Orientation)[0] in TURNS  # TIFF: Pillow turns it, and forgets the tag
    image.load()
    if turned:
        return image, [TURNED]
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # noqa: BLE001 - damaged EXIF data spoil no pixels
        return image, ["EXIF data not readable"]
    if orientation in TURNS:
        return image.transpose(TURNS[orientation]), [TURNED]
    return image, []


@dataclass(frozen=True)
class _Scaled:
    """A picture of 8 bits whose white is 255; highest and deep as in Picture."""

    image: Image.Image
    highest: int | None = None
    deep: bool = False


def _scale(image: Image.Image, stored: _Stored, look: Look) -> _Scaled:
    """Bring the values of a picture to 0..255, where white is 255.

    Raises:
        _RefusedError: for values without a known white, and for colours of 16 bits that use fewer.
    """
    if image.mode not in EIGHT_BITS:
        return _reduce(image, stored, look)
    if image.mode == "1":
        return _Scaled(image)
    transparent = image.has_transparency_data
    image = image.convert("RGBA") if transparent else image
    colours = image if image.mode == "L" else image.convert("RGB")
    highest = int(np.asarray(colours).max())
    white = look.white or WHITE
    if ";16" in stored.raw:  # Pillow reads the upper 8 bits only
        if white < WHITE:
            read = "colours of 16 bits, of which only the upper 8 are read"
            msg = f"{read}, but white is {white}: save it with 8 bits, or set white to {WHITE}"
            raise _RefusedError(msg)
        return _Scaled(image, highest * 257, deep=True)
    if white < 255:
        table = [min(255, (value * 255 + white // 2) // white) for value in range(256)]
        image = (image if transparent else colours).point(
            table * len(colours.getbands()) + list(range(256)) * transparent
        )
    return _Scaled(image, highest)


def _flatten(image: Image.Image, look: Look) -> tuple[Image.Image, float | None]:
    """Return the picture in mode L or RGB, blended with the background, and its ink as in Picture."""
    ink = None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ink = _measure_ink(image)
        flat = Image.new("RGB", image.size, (look.background or 0,) * 3)
        flat.paste(image, mask=image.getchannel("A"))
        image = flat
    return image.convert("L" if look.channels == 1 else "RGB"), ink


def _measure_ink(image: Image.Image) -> float | None:
    """Return the mean grey level of the visible part of an RGBA picture; None where all of it, or nothing, is."""
    alpha = np.asarray(image.getchannel("A"), dtype=np.float64)
    if alpha.min() == 255 or not alpha.any():
        return None
    return float(np.average(np.asarray(image.convert("L")), weights=alpha))


def _reduce(image: Image.Image, stored: _Stored, look: Look) -> _Scaled:
    """Bring grey values of more than 8 bits to 0..255: whole ones are divided by white, floats in [0, 1] multiplied.

    Raises:
        _RefusedError: for values without a known white, such as floats beyond 1 or 32-bit integers.
    """
    if image.mode not in {"I", "I;16", "I;16B", "I;16L", "I;16N", "F"}:
        msg = f"pixels of mode {image.mode} are not supported"
        raise _RefusedError(msg)
    values = np.asarray(image)
    low, high = values.min(), values.max()
    highest = None
    if image.mode == "F":
        if not (low >= 0 and high <= 1):  # also NaN
            msg = f"float values from {low:g} to {high:g}, expected 0 to 1"
            raise _RefusedError(msg)
        eight = (values * np.float32(255) + np.float32(0.5)).astype(np.uint8)
    else:
        if image.mode == "I" and stored.format != "PPM" and not (low >= 0 and 255 < high <= 65535):
            msg = f"32-bit integers from {low} to {high}: which one is white is not known, save it with 8 or 16 bits"
            raise _RefusedError(msg)
        white = look.white or WHITE
        if "I;12" in stored.raw or (image.mode == "I" and stored.format == "PPM"):
            white = 4095 if "I;12" in stored.raw else WHITE  # the file states its depth
        else:
            highest = int(high)
        eight = ((values.clip(max=white).astype(np.uint32) * 255 + white // 2) // white).astype(np.uint8)
    if stored.white_is_zero:
        eight = 255 - eight
    if isinstance(key := image.info.get("transparency"), int):
        alpha = np.where(values == key, 0, 255).astype(np.uint8)
        return _Scaled(Image.fromarray(np.dstack([eight, alpha])), highest, deep=highest is not None)
    return _Scaled(Image.fromarray(eight), highest, deep=highest is not None)


def _fit(image: Image.Image, look: Look) -> Image.Image:
    """Make the picture a square of `size` pixels per side."""
    resample = Image.Resampling[look.filter.upper()]
    if look.fit == "crop":
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        return image.resize((look.size, look.size), resample, box=(left, top, left + side, top + side))
    scale = look.size / max(image.size)
    width, height = (max(1, round(length * scale)) for length in image.size)
    square = Image.new(image.mode, (look.size, look.size), (look.background or 0,) * len(image.getbands()))
    square.paste(image.resize((width, height), resample), ((look.size - width) // 2, (look.size - height) // 2))
    return square
