"""Pictures as they come: every mode and format decoded to known pixels, everything broken refused with its reason."""

import io
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from pipeline.formats.pictures import Look, Picture, Survey, decode

ROOT = Path(__file__).resolve().parents[2]
GREY = {"size": 4, "channels": 1}
NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
RAMP = np.array([[0, 255, 256, 65535]] * 4)  # 16 bits; divided by 257: 0, 0.99, 0.996, 255


def save(image: Image.Image | np.ndarray, format: str, **options: Any) -> bytes:  # noqa: A002
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, format, **options)
    return buffer.getvalue()


def read(content: bytes, name: str = "x.png", **look: Any) -> Picture:
    return decode(io.BytesIO(content), name, Look.model_validate({"size": 4, **look}))


def rows(picture: Picture) -> list[list[int]]:
    """The first row of each channel; every test picture here repeats it."""
    assert picture.reason == ""
    assert picture.pixels is not None
    assert (picture.pixels == picture.pixels[:, :1]).all()
    return picture.pixels[:, 0].tolist()


def palette() -> Image.Image:
    image = Image.frombytes("P", (4, 4), bytes([0, 1, 2, 3] * 4))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 255, 0, 0])
    return image


# --- modes -------------------------------------------------------------------


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
@pytest.mark.fault(18)
def test_16_bit_grey_is_divided_by_257_and_not_clipped(format: str) -> None:  # noqa: A002
    picture = read(save(RAMP.astype(np.uint16), format), f"x.{format.lower()}", **GREY)
    assert rows(picture) == [[0, 1, 1, 255]]
    assert picture.mode == f"{'I' if format == 'PPM' else 'I;16'} 4x4 {format}"
    levels = np.arange(256).reshape(16, 16)
    every = read(save((levels * 257).astype(np.uint16), "PNG"), size=16, channels=1)
    assert np.array_equal(every.pixels[0], levels)  # type: ignore[index]


@pytest.mark.parametrize("most", [1023, 65535])
def test_a_ppm_file_is_scaled_by_the_white_that_it_states(most: int) -> None:
    values = np.array([[0, most // 2, most // 2 + 1, most]] * 4, dtype=">u2")
    picture = read(f"P5 4 4 {most}\n".encode() + values.tobytes(), "x.pgm", **GREY)
    assert rows(picture) == [[0, 127, 128, 255]]


def test_12_bit_grey_in_a_tiff_file_is_scaled_by_4095() -> None:
    packed = bytes.fromhex("000 7FF 800 FFF".replace(" ", "")) * 4
    assert rows(read(tiff(packed, 4, bits=12), "x.tif", **GREY)) == [[0, 127, 128, 255]]


def test_16_bit_grey_with_white_as_zero_is_turned_round() -> None:
    packed = RAMP.astype("<u2").tobytes()
    assert rows(read(tiff(packed, 4, bits=16), "x.tif", **GREY)) == [[0, 1, 1, 255]]
    assert rows(read(tiff(packed, 4, bits=16, photometric=0), "x.tif", **GREY)) == [[255, 254, 254, 0]]


def test_16_bit_colour_keeps_its_upper_8_bits_and_says_so() -> None:
    row = np.array([[0, 255, 256], [65535, 0x1234, 0]] * 2, dtype=">u2")
    body = b"".join(b"\0" + row.tobytes() for _ in range(4))
    picture = read(png(4, 4, zlib.compress(body), depth=16, kind=2))
    assert rows(picture) == [[0, 255, 0, 255], [0, 0x12, 0, 0x12], [1, 0, 1, 0]]
    assert picture.note == "upper 8 of 16 bits a channel"


@pytest.mark.parametrize("format", ["TIFF", "PPM"])
@pytest.mark.fault(18)
def test_floats_in_0_to_1_are_multiplied_by_255(format: str) -> None:  # noqa: A002
    values = np.array([[0, 0.25, 0.5, 1]] * 4, dtype=np.float32)
    name = {"TIFF": "x.tif", "PPM": "x.pfm"}[format]
    assert rows(read(save(values, format), name, **GREY)) == [[0, 64, 128, 255]]


@pytest.mark.parametrize(("value", "said"), [(1.5, "0 to 1.5"), (-0.5, "-0.5 to 0"), (np.nan, "nan"), (np.inf, "inf")])
@pytest.mark.fault(18)
def test_floats_beyond_0_to_1_are_refused_with_their_range(value: float, said: str) -> None:
    values = np.zeros((4, 4), dtype=np.float32)
    values[1, 1] = value
    assert said in read(save(values, "TIFF"), "x.tif").reason


def test_32_bit_integers_are_taken_for_16_bits_if_they_can_be() -> None:
    picture = read(save(RAMP.astype(np.int32), "TIFF"), "x.tif", **GREY)
    assert rows(picture) == [[0, 1, 1, 255]]
    assert picture.note == "32-bit integers taken for 16 bits"


@pytest.mark.parametrize("values", [RAMP * 2, RAMP - 1, RAMP.clip(0, 255)])
def test_32_bit_integers_without_a_known_white_are_refused(values: np.ndarray) -> None:
    picture = read(save(values.astype(np.int32), "TIFF"), "x.tif")
    assert f"32-bit integers from {values.min()} to {values.max()}" in picture.reason


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
@pytest.mark.fault(18)
def test_transparent_pixels_show_the_background_and_not_their_hidden_colour(format: str) -> None:  # noqa: A002
    values = np.zeros((4, 4, 4), dtype=np.uint8)
    values[..., 0] = 255
    values[..., 3] = [0, 51, 102, 255]  # a fifth and two fifths
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    content = save(values, format, **options)
    name = f"x.{format.lower()}"
    assert rows(read(content, name, background=100)) == [[100, 131, 162, 255], [100, 80, 60, 0], [100, 80, 60, 0]]
    assert rows(read(content, name, background=0)) == [[0, 51, 102, 255], [0] * 4, [0] * 4]


def test_transparent_grey_shows_the_background() -> None:
    values = np.zeros((4, 4, 2), dtype=np.uint8)
    values[..., 0] = 200
    values[..., 1] = [0, 51, 102, 255]
    assert rows(read(save(values, "PNG"), background=100, **GREY)) == [[100, 120, 140, 200]]


def test_16_bit_grey_with_a_transparent_value_shows_the_background_there() -> None:
    content = save(RAMP.astype(np.uint16), "PNG", transparency=256)
    assert rows(read(content, background=99, **GREY)) == [[0, 1, 99, 255]]


@pytest.mark.parametrize("format", ["PNG", "GIF", "TIFF", "BMP"])
def test_a_palette_is_looked_up(format: str) -> None:  # noqa: A002
    picture = read(save(palette(), format), f"x.{format.lower()}")
    assert rows(picture) == [[10, 40, 70, 255], [20, 50, 80, 0], [30, 60, 90, 0]]
    assert picture.mode == f"P 4x4 {format}"


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_a_transparent_entry_of_a_palette_shows_the_background(format: str) -> None:  # noqa: A002
    picture = read(save(palette(), format, transparency=1), f"x.{format.lower()}", background=9)
    assert rows(picture) == [[10, 9, 70, 255], [20, 9, 80, 0], [30, 9, 90, 0]]


def test_half_transparent_entries_of_a_palette_are_blended() -> None:
    picture = read(save(palette(), "PNG", transparency=bytes([0, 51, 255, 255])), background=100)
    assert rows(picture) == [[100, 88, 70, 255], [100, 90, 80, 0], [100, 92, 90, 0]]


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb(format: str) -> None:  # noqa: A002
    cyan, black = (Image.new("CMYK", (16, 16), ink) for ink in ((255, 0, 0, 0), (0, 0, 0, 255)))
    name = f"x.{format.lower()}"
    assert rows(read(save(cyan, format), name)) == [[0] * 4, [255] * 4, [255] * 4]
    assert rows(read(save(black, format), name)) == [[0] * 4] * 3
    assert read(save(cyan, format), name).mode == f"CMYK 16x16 {format}"


@pytest.mark.parametrize("format", ["PNG", "TIFF", "BMP", "PPM"])
def test_1_bit_becomes_black_and_white(format: str) -> None:  # noqa: A002
    image = Image.fromarray(np.array([[0, 255, 255, 0]] * 4, dtype=np.uint8)).convert("1")
    assert rows(read(save(image, format), f"x.{format.lower()}", **GREY)) == [[0, 255, 255, 0]]


def test_colour_becomes_grey_by_the_luma_of_itu_r_601_and_grey_three_equal_channels() -> None:
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [10, 100, 200]]] * 4, dtype=np.uint8)
    expected = (colours[0] @ [0.299, 0.587, 0.114]).round().astype(int).tolist()
    assert rows(read(save(colours, "PNG"), **GREY)) == [expected]
    grey = np.array([[3, 50, 100, 255]] * 4, dtype=np.uint8)
    assert rows(read(save(grey, "PNG"))) == [[3, 50, 100, 255]] * 3


def test_a_mode_that_pillow_cannot_convert_is_refused_by_its_name() -> None:
    assert read(save(Image.new("LAB", (4, 4)), "TIFF"), "x.tif").reason == "pixels of mode LAB are not supported"


# --- EXIF, animations, names -------------------------------------------------


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(format: str, orientation: int) -> None:  # noqa: A002
    values = np.zeros((32, 48, 3), dtype=np.uint8)
    values[:16, :16] = 255  # a mark in one corner
    exif = Image.Exif()
    exif[274] = orientation
    content = save(values, format, exif=exif)
    picture = read(content, f"x.{format.lower()}", size=48, fit="pad")
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB"))
    edge = {True: picture.pixels[:, 8:40], False: picture.pixels[:, :, 8:40]}[upright.shape[0] == 32]  # type: ignore[index]
    assert np.array_equal(edge.transpose(1, 2, 0), upright)
    assert picture.note == ("turned as its EXIF data say" if orientation > 1 else "")
    corner = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}
    assert upright[corner[orientation]].min() > 200  # the table of EXIF 2.3


def test_damaged_exif_data_spoil_no_pixels() -> None:
    content = save(NOISE, "JPEG", exif=b"Exif\0\0garbage")
    picture = read(content, "x.jpg", size=64)
    assert np.array_equal(picture.pixels.transpose(1, 2, 0), np.asarray(Image.open(io.BytesIO(content))))  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("format", "name"), [("GIF", "x.gif"), ("PNG", "x.png"), ("WEBP", "x.webp"), ("TIFF", "x.tif"), ("MPO", "x.jpg")]
)
def test_of_an_animation_the_first_frame_is_used_and_that_is_said(format: str, name: str) -> None:  # noqa: A002
    first, *others = (Image.new("RGB", (16, 16), (level, 0, 0)) for level in (10, 200, 90))
    options = {"lossless": True} if format == "WEBP" else {}
    picture = read(save(first, format, save_all=True, append_images=others, **options), name)
    assert rows(picture) == [[10] * 4, [0] * 4, [0] * 4]
    assert picture.note == "first of 3 frames"


def test_the_content_decides_what_a_file_is_and_a_wrong_ending_is_said() -> None:
    content = save(NOISE, "PNG")
    for name, note in [
        ("x.jpg", "named '.jpg', holds PNG"),
        ("no ending", "no ending, holds PNG"),
        ("a.b/no ending", "no ending, holds PNG"),
        ("x.PNG", ""),
    ]:
        picture = read(content, name, size=64)
        assert picture.note == note
        assert np.array_equal(picture.pixels, NOISE.transpose(2, 0, 1))  # type: ignore[arg-type]


# --- broken ------------------------------------------------------------------


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
@pytest.mark.parametrize("share", [0.0, 0.002, 0.01, 0.5, 0.9])
@pytest.mark.fault(31)
def test_a_truncated_file_is_refused_and_a_whole_one_is_not(format: str, share: float) -> None:  # noqa: A002
    content = save(NOISE, format)
    name = f"x.{format.lower()}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        picture = read(content[: int(share * len(content))], name)
    assert picture.pixels is None
    assert picture.reason
    assert read(content, name).reason == ""
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_a_flipped_bit_in_a_png_file_changes_no_pixel_unnoticed() -> None:
    content = save(NOISE[..., 0], "PNG", compress_level=0)
    for position in range(33, len(content) - 12, 97):
        damaged = bytearray(content)
        damaged[position] ^= 1
        picture = read(bytes(damaged), size=64, channels=1)
        assert picture.reason or np.array_equal(picture.pixels[0], NOISE[..., 0])  # type: ignore[index]


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><html></html>", bytes(1000), b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_what_is_no_picture_is_refused_with_its_first_bytes(content: bytes) -> None:
    assert read(content).reason == f"no readable picture of a known format, it begins with {content[:16]!r}"


def test_formats_beyond_the_well_known_are_not_opened() -> None:
    for format in ("PCX", "TGA", "ICO", "SGI", "IM", "DDS", "JPEG2000", "AVIF"):  # noqa: A001
        assert read(save(Image.new("RGB", (16, 16)), format), "x.png").reason.startswith("no readable picture")


# --- bombs -------------------------------------------------------------------


def png(width: int, height: int, data: bytes, *, depth: int = 8, kind: int = 0) -> bytes:
    """A PNG file of the specification's chunks; `data` is the compressed image."""
    chunks = {b"IHDR": struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0), b"IDAT": data, b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks.items()
    )


def black(width: int, height: int, depth: int = 8) -> bytes:
    """A whole black PNG file, made row by row."""
    press = zlib.compressobj(1)
    row = bytes(1 + (width * depth + 7) // 8)
    return png(width, height, b"".join(press.compress(row) for _ in range(height)) + press.flush(), depth=depth)


def tiff(data: bytes, side: int, *, bits: int = 8, photometric: int = 1, tile: int = 0, compression: int = 1) -> bytes:
    """A little-endian grey TIFF file of one strip, or of one tile `tile` pixels a side."""
    place = {322: tile, 323: tile, 324: 0, 325: len(data)} if tile else {273: 0, 278: side, 279: len(data)}
    tags = {256: side, 257: side, 258: bits, 259: compression, 262: photometric, 277: 1, **place}
    start = 8 + 2 + 12 * len(tags) + 4
    tags[324 if tile else 273] = start
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data


def header(format: str, side: int) -> bytes:  # noqa: A002
    """A small file of the format whose header promises a square picture of `side` pixels."""
    content = bytearray(save(Image.new("L", (8, 8)), format))
    if format == "JPEG":
        at = content.index(b"\xff\xc0") + 5
        content[at : at + 4] = struct.pack(">HH", side, side)
    elif format == "GIF":
        content[6:10] = struct.pack("<HH", side, side)
    elif format == "BMP":
        content[18:26] = struct.pack("<ii", side, side)
    else:
        content = bytearray(f"P5 {side} {side} 255\n".encode() + bytes(64))
    return bytes(content)


@pytest.mark.parametrize("side", [9_500, 13_300, 20_000])  # 90, 177 and 400 megapixels: Pillow warns, warns, refuses
@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "BMP", "PPM"])
@pytest.mark.fault(47)
def test_a_header_of_too_many_megapixels_is_refused(format: str, side: int) -> None:  # noqa: A002
    content = png(side, side, b"") if format == "PNG" else header(format, side)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        picture = read(content, f"x.{format.lower()}")
    assert picture.pixels is None
    assert "more than 50 megapixels" in picture.reason
    assert str(side) in picture.reason or str(side**2) in picture.reason


def test_the_limit_is_in_params() -> None:
    content = black(1000, 1001)
    assert read(content, max_megapixels=1.001).reason == ""
    assert read(content, max_megapixels=1.0).reason == "1000x1001 pixels are more than 1 megapixels"


@pytest.mark.fault(47)
def test_a_small_tiff_file_of_a_huge_tile_is_refused() -> None:
    assert read(tiff(zlib.compress(bytes(64**2)), 16, tile=64, compression=8), "x.tif").reason == ""
    picture = read(tiff(b"", 16, tile=20_000, compression=8), "x.tif")
    assert picture.reason == "tiles of 20000x20000 pixels are more than 50 megapixels"


PROBE = """
import pathlib, sys
from pipeline.formats.pictures import Look, decode
for path in map(pathlib.Path, sys.argv[1:]):
    with path.open("rb") as file:
        print(decode(file, path.name, Look(size=8)).reason[:27])
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process's memory is read from /proc")
@pytest.mark.fault(47)
def test_memory_stays_bounded_whatever_a_whole_bomb_unpacks_to(tmp_path: Path) -> None:
    (tmp_path / "grey.png").write_bytes(black(20_000, 20_000))
    (tmp_path / "black.png").write_bytes(black(20_000, 20_000, depth=1))
    (tmp_path / "small.png").write_bytes(black(3_000, 3_000))
    paths = [str(tmp_path / name) for name in ("grey.png", "black.png", "small.png")]
    assert max(Path(path).stat().st_size for path in paths) < 4_000_000
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROBE, *paths], cwd=ROOT, check=True, capture_output=True, text=True
    )
    *reasons, peak = result.stdout.splitlines()
    assert reasons == ["more than 50 megapixels: Im", "more than 50 megapixels: Im", ""]
    assert int(peak) < 200_000  # KiB, of which Python and its packages are 70,000; the first two would add 1,600,000


# --- one shape ---------------------------------------------------------------


def test_a_picture_of_the_right_size_is_kept_to_the_bit_by_every_filter() -> None:
    for resample in ("lanczos", "bicubic", "bilinear", "box", "nearest"):
        picture = read(save(NOISE, "PNG"), size=64, filter=resample)
        assert np.array_equal(picture.pixels, NOISE.transpose(2, 0, 1))  # type: ignore[arg-type]


def test_the_centre_is_cropped() -> None:
    values = NOISE[:21, :, 0]  # 21 rows of 64 columns: the square begins at column 21
    assert np.array_equal(read(save(values, "PNG"), size=21, channels=1).pixels[0], values[:, 21:42])  # type: ignore[index]
    turned = read(save(values.T, "PNG"), size=21, channels=1)
    assert np.array_equal(turned.pixels[0], values[:, 21:42].T)  # type: ignore[index]


def test_padding_keeps_the_whole_picture_between_bars_of_the_background() -> None:
    values = NOISE[:20]
    picture = read(save(values, "PNG"), size=64, fit="pad", background=7)
    expected = np.full((64, 64, 3), 7)
    expected[22:42] = values
    assert np.array_equal(picture.pixels, expected.transpose(2, 0, 1))  # type: ignore[arg-type]
    line = read(save(np.full((1, 1000), 200, np.uint8), "PNG"), size=8, channels=1, fit="pad", background=7)
    assert line.pixels[0].tolist() == [[200 if row == 3 else 7] * 8 for row in range(8)]  # type: ignore[index]


def test_the_box_filter_takes_means_and_the_nearest_takes_pixels() -> None:
    blocks = NOISE[..., 0].reshape(16, 4, 16, 4)
    means = read(save(NOISE[..., 0], "PNG"), size=16, channels=1, filter="box").pixels[0]  # type: ignore[index]
    assert np.abs(means - blocks.mean((1, 3))).max() <= 1  # each direction rounds once
    picked = read(save(NOISE[..., 0], "PNG"), size=16, channels=1, filter="nearest").pixels[0]  # type: ignore[index]
    assert np.array_equal(picked, NOISE[2::4, 2::4, 0])


def test_one_pixel_fills_the_image() -> None:
    picture = read(save(np.array([[77]], dtype=np.uint8), "PNG"))
    assert picture.mode == "L 1x1 PNG"
    assert rows(picture) == [[77] * 4] * 3


# --- white and ground, by the whole set --------------------------------------


def settle(contents: list[bytes], **look: Any) -> Look:
    """The look that a set of PNG files gets."""
    survey = Survey()
    for content in contents:
        survey.add(read(content, **look))
    return survey.settle(Look.model_validate({"size": 4, **look}))


def deep(highest: int) -> bytes:
    return save(np.array([[0, highest // 2, highest, 0]] * 4, dtype=np.uint16), "PNG")


def eight(highest: int) -> bytes:
    return save(np.array([[0, highest, 0, highest]] * 4, dtype=np.uint8), "PNG")


@pytest.mark.parametrize(
    ("contents", "white"),
    [
        ([deep(4095)], 4095),
        ([deep(4000), deep(3)], 4095),  # a dark picture takes part, and decides nothing
        ([deep(1023)], 1023),
        ([deep(40_000), deep(4095)], 65535),
        ([deep(200)], 255),
        ([deep(4095), eight(255)], 4095),
        ([deep(1), eight(1)], 1),
        ([eight(1), eight(0)], 1),
        ([eight(1), eight(2)], 65535),  # no masks: dark pictures of 8 bits stay dark
        ([eight(255)], 65535),
        ([eight(0)], 65535),
    ],
)
def test_white_is_the_largest_number_of_the_bits_that_the_set_uses(contents: list[bytes], white: int) -> None:
    assert settle(contents, channels=1).white == white
    assert settle(contents, channels=1, white=65535).white == 65535


def test_scans_of_12_bits_masks_and_pictures_of_8_bits_are_scaled_by_the_white_of_the_set() -> None:
    assert rows(read(deep(4095), white=4095, **GREY)) == [[0, 127, 255, 0]]  # 2047 / 4095 is 127.47
    assert rows(read(deep(4095), **GREY)) == [[0, 8, 16, 0]]
    assert rows(read(deep(8190), white=4095, **GREY)) == [[0, 255, 255, 0]]  # beyond white is white
    assert rows(read(eight(200), white=4095, **GREY)) == [[0, 200, 0, 200]]
    assert rows(read(eight(1), white=1, **GREY)) == [[0, 255, 0, 255]]
    colours = np.zeros((4, 4, 4), dtype=np.uint8)
    colours[..., 1], colours[..., 3] = 1, [0, 255, 255, 255]
    assert rows(read(save(colours, "PNG"), white=1)) == [[0] * 4, [0, 255, 255, 255], [0] * 4]


def test_a_white_that_the_file_states_is_kept() -> None:
    stated = f"P5 4 4 {1023}\n".encode() + np.array([[0, 511, 512, 1023]] * 4, dtype=">u2").tobytes()
    for white in (None, 1, 255):
        assert rows(read(stated, "x.pgm", white=white, **GREY)) == [[0, 127, 128, 255]]
    bits = save(Image.fromarray(np.array([[0, 255, 255, 0]] * 4, dtype=np.uint8)).convert("1"), "PNG")
    assert read(bits).highest is None
    assert rows(read(bits, white=1, **GREY)) == [[0, 255, 255, 0]]


def test_colours_of_16_bits_that_use_fewer_are_refused_because_pillow_drops_the_lower_ones() -> None:
    body = (b"\0" + np.full((4, 3), 0x0FFF, dtype=">u2").tobytes()) * 4
    content = png(4, 4, zlib.compress(body), depth=16, kind=2)
    white = settle([content]).white
    assert white == 4095
    assert "only the upper 8 are read, but white is 4095" in read(content, white=white).reason
    assert rows(read(content, white=65535)) == [[15] * 4] * 3


def ink(level: int, alpha: int = 255) -> bytes:
    values = np.full((4, 4, 4), level, dtype=np.uint8)
    values[..., 3] = [0, alpha, alpha, 0]
    return save(values, "PNG")


@pytest.mark.parametrize(
    ("contents", "ground"),
    [
        ([ink(0)], 255),
        ([ink(255)], 0),
        ([ink(10), ink(10), ink(255)], 255),  # most are dark
        ([ink(10), ink(255), ink(255)], 0),
        ([ink(10), eight(255), eight(255)], 255),  # pictures without transparency have no say
        ([ink(10, alpha=3)], 255),
        ([ink(10, alpha=0)], 0),  # nothing is visible
        ([eight(1)], 0),
    ],
)
def test_the_ground_is_white_where_the_visible_ink_of_the_set_is_dark(contents: list[bytes], ground: int) -> None:
    assert settle(contents).background == ground
    assert settle(contents, background=9).background == 9


def test_ink_is_the_mean_luma_of_the_pixels_weighted_by_their_alpha() -> None:
    values = np.random.default_rng(5).integers(0, 256, (6, 6, 4), dtype=np.uint8)
    luma = np.round(values[..., :3] @ [0.299, 0.587, 0.114])
    assert read(save(values, "PNG"), size=6).ink == pytest.approx(np.average(luma, weights=values[..., 3]), abs=1)
    assert read(save(values[..., :3], "PNG"), size=6).ink is None
