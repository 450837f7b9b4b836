"""Says in a generated file that a model made it, and which: in a PNG or a WAV itself, else in a JSON next to it.

PNG       a text chunk per key, and an XMP packet with IPTC's DigitalSourceType and the field AIGC
WAV       the same packet in the chunk _PMX, where Adobe's XMP specification puts it, and the texts by key as JSON in
          the comment of a LIST INFO chunk, which players show
others    origin.json in their folder: the same keys under the file's name, and the SHA-256 of its content

AIGC is the label in the metadata that GB 45438-2025 asks for; its namespace is that of TC260-PG-20258A. Nothing is
signed, and no time is noted: equal samples of one model give equal bytes.
"""

import hashlib
import html
import io
import json
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from pipeline import artifacts
from pipeline.artifacts import ArtifactError

SIDECAR = "origin.json"
PACKET = "XML:com.adobe.xmp"  # the keyword of the chunk where readers of XMP look
SOURCE_TYPE = "DigitalSourceType"
TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
GENERATED = f"{TYPES}trainedAlgorithmicMedia"
COMPOSITE = f"{TYPES}compositeWithTrainedAlgorithmicMedia"  # a part of it is somebody else's
AIGC = "AIGC"
MAX_BYTES = 1 << 26  # of a sidecar
XMP = """\
<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" \
xmlns:TC260="http://www.tc260.org.cn/ns/AIGC/1.0/">
<Iptc4xmpExt:DigitalSourceType>{source}</Iptc4xmpExt:DigitalSourceType>
<TC260:AIGC>{aigc}</TC260:AIGC>
</rdf:Description>
</rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>"""


def make_aigc(producer: str, identity: str) -> str:
    """Return the field AIGC as JSON: generated for certain, by whom, and the producer's number of the content."""
    return json.dumps(
        {
            "Label": "1",
            "ContentProducer": producer,
            "ProduceID": identity,
            "ReservedCode1": "",
            "ContentPropagator": "",
            "PropagateID": "",
            "ReservedCode2": "",
        }
    )


def mark(
    content: bytes, origin: Mapping[str, str], frames: Sequence[Image.Image] = (), source: str = GENERATED
) -> bytes:
    """Return a PNG with its origin; the pixels stay as they are.

    Args:
        content: the PNG.
        origin: texts by key; AIGC must be one of the keys.
        frames: further pictures, which make an animation of it.
        source: GENERATED or COMPOSITE.
    """
    chunks = PngInfo()
    for key, value in origin.items():
        if key != AIGC:
            chunks.add_itxt(key, value.encode("utf-8", "replace").decode())
    chunks.add_itxt(PACKET, XMP.format(source=source, aigc=html.escape(origin[AIGC])))
    buffer = io.BytesIO()
    animation: dict[str, Any] = {"save_all": True, "append_images": frames, "duration": 80, "loop": 0} if frames else {}
    with Image.open(io.BytesIO(content)) as picture:
        picture.save(buffer, "PNG", pnginfo=chunks, **animation)
    return buffer.getvalue()


def describe(content: bytes, origin: Mapping[str, str], source: str = GENERATED) -> dict[str, str]:
    """Return the entry of a file that is no PNG in the sidecar."""
    return {**origin, SOURCE_TYPE: source, "sha256": hashlib.sha256(content).hexdigest()}


def read(path: Path) -> dict[str, str]:
    """Return the origin that a file, or the sidecar next to it, states.

    Raises:
        ArtifactError: if it states none, or its content is not the one that the sidecar is about.
    """
    try:
        found = _read_picture(path) or _read_sound(path) or _read_sidecar(path)
    except OSError as error:
        msg = f"{path}: cannot be read: {error.strerror or error}"
        raise ArtifactError(msg) from error
    if not found:
        msg = f"{path}: says nothing of its origin, and neither does {SIDECAR} in its folder"
        raise ArtifactError(msg)
    return found


def _read_picture(path: Path) -> dict[str, str]:
    """Return the texts of a picture and the two fields of its XMP; nothing of a file that has no DigitalSourceType."""
    try:
        with Image.open(path) as picture:
            texts = {str(key): value for key, value in picture.info.items() if isinstance(value, str)}
    except (UnidentifiedImageError, Image.DecompressionBombError, ValueError, SyntaxError):
        return {}
    return _join_packet(texts, texts.pop(PACKET, ""))


def _read_sound(path: Path) -> dict[str, str]:
    """Return the texts of a WAV and the two fields of its XMP; nothing of a file that has no DigitalSourceType."""
    with path.open("rb") as file:
        start = file.read(12)
        if (start[:4], start[8:]) != (b"RIFF", b"WAVE") or path.stat().st_size > MAX_BYTES:
            return {}
        chunks = dict(_list_chunks(file.read()))
    notes = dict(_list_chunks(chunks.get(b"LIST", b"")[4:]))  # after INFO
    try:
        texts = json.loads(notes.get(b"ICMT", b"{}").rstrip(b"\0"))
    except (ValueError, RecursionError):  # a comment of another program
        texts = {}
    texts = {str(key): str(value) for key, value in texts.items()} if isinstance(texts, dict) else {}
    return _join_packet(texts, chunks.get(b"_PMX", b"").decode(errors="replace"))


def _join_packet(texts: dict[str, str], packet: str) -> dict[str, str]:
    """Return the texts with the two fields of an XMP packet; nothing if it has no DigitalSourceType."""
    fields = {name: _find_field(packet, name) for name in (SOURCE_TYPE, AIGC)}
    return texts | {name: value for name, value in fields.items() if value} if fields[SOURCE_TYPE] else {}


def _find_field(packet: str, name: str) -> str:
    """Return a field of an XMP packet, which is an attribute or an element."""
    found = re.search(rf':{name}(?:\s*=\s*"([^"]*)"|\s*>([^<]*)<)', packet)
    return html.unescape(found[1] or found[2] or "") if found else ""


def mark_sound(content: bytes, origin: Mapping[str, str], source: str = GENERATED) -> bytes:
    """Return a WAV with its origin in chunks after its own; the samples stay as they are.

    Args:
        content: the WAV.
        origin: texts by key; `generator` and AIGC must be among the keys.
        source: IPTC's DigitalSourceType.
    """
    texts = {key: value for key, value in origin.items() if key != AIGC}
    notes = _make_chunk(b"ISFT", origin["generator"].encode() + b"\0")
    notes += _make_chunk(b"ICMT", json.dumps(texts).encode() + b"\0")
    packet = XMP.format(source=source, aigc=html.escape(origin[AIGC])).encode()
    chunks = content[12:] + _make_chunk(b"LIST", b"INFO" + notes) + _make_chunk(b"_PMX", packet)
    return _make_chunk(b"RIFF", b"WAVE" + chunks)


def _make_chunk(name: bytes, content: bytes) -> bytes:
    """Return a chunk of a RIFF file, which has an even length."""
    return name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


def _list_chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the name and the content of each chunk in a row of them; what is cut off is left out."""
    place = 0
    while place + 8 <= len(content):
        name, size = struct.unpack_from("<4sI", content, place)
        if place + 8 + size <= len(content):
            yield name, content[place + 8 : place + 8 + size]
        place += 8 + size + size % 2


def _read_sidecar(path: Path) -> dict[str, str]:
    sidecar = path.with_name(SIDECAR)
    if not sidecar.is_file() or sidecar.stat().st_size > MAX_BYTES:
        return {}
    entries = artifacts.read_json(sidecar)
    entry = entries.get(path.name) if isinstance(entries, dict) else None
    if not isinstance(entry, dict):
        return {}
    if (found := artifacts.digest(path)) != (expected := entry.get("sha256")):
        msg = f"{path}: {sidecar} is about SHA-256 {expected}, found {found}"
        raise ArtifactError(msg)
    return {str(key): str(value) for key, value in entry.items()}
