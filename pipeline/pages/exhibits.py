"""Shows an exhibit by its suffix: a picture, a sound, texts with their prompt marked, attention; else a link."""

import base64
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import indent

from markupsafe import Markup, escape
from ruamel.yaml import YAML

from pipeline import artifacts
from pipeline.kinds import Exhibit

MEDIA = {  # by suffix: the media type, and the element that shows an address with a title
    ".png": ("image/png", Markup('<img src="{}" alt="{}"{}>')),
    ".wav": ("audio/wav", Markup('<audio controls src="{}" title="{}"{}></audio>')),
}
SHARP = Markup(' class="small"')
SMALL = 420  # pixels; a narrower picture is enlarged without a blur
NOTES = {
    "samples": "The first samples that were drawn, not a selection.",
    "reconstructions": "Each test picture before its reconstruction.",
    "completions": "The upper half that the model is given, its completion, and the test picture itself.",
    "harmonisations": "Each test piece before one with its first voice, and other voices that the model has drawn.",
    "interpolations": "Each row walks from one sample to another, of one class if the model is told the class.",
    "neighbours": "The samples that are nearest to one training example only, each before that example.",
    "attention": "Choose a layer and head, and a token; brighter tokens are those that it looks at.",
}


@dataclass(frozen=True)
class Shown:
    """An exhibit in HTML and in Markdown; its title says of which run it is, its note how to read it."""

    name: str
    title: str
    html: Markup
    markdown: str

    @property
    def note(self) -> str:
        """How to read it."""
        return NOTES.get(self.name, "")


def read_exhibit(path: Path) -> Exhibit:
    """Read an exhibit that a stage wrote."""
    return Exhibit(path.stem, path.suffix, path.read_bytes())


def show_exhibit(path: Path, prompt: str = "") -> Shown:
    """Show a file of reports/runs/<run>/<stage>, where <stage> is samples or audit."""
    title = f"{path.stem} of {path.parents[1].name}"
    return show(read_exhibit(path), title, path.relative_to(artifacts.REPORTS).as_posix(), prompt)


def show(exhibit: Exhibit, title: str, place: str = "", prompt: str = "") -> Shown:
    """Show an exhibit.

    Args:
        exhibit: its suffix decides how.
        title: of it, which a screen reader reads.
        place: of its file, for a link.
        prompt: with which its texts begin, if it has texts.
    """
    if exhibit.suffix in TEXTS:
        texts = TEXTS[exhibit.suffix](exhibit.content.decode())
        html = Markup().join(Markup("<pre tabindex=0>{}</pre>").format(mark_prompt(text, prompt)) for text in texts)
        joined = "\n\n----\n\n".join(text.strip("\n") for text in texts)
        return Shown(exhibit.name, title, html, indent(joined, "    ", lambda _: True))
    if exhibit.suffix in MEDIA:
        kind, element = MEDIA[exhibit.suffix]
        address = f"data:{kind};base64,{base64.b64encode(exhibit.content).decode()}"
        is_small = kind == "image/png" and int.from_bytes(exhibit.content[16:20], "big") < SMALL
        html = element.format(address, title, SHARP if is_small else "")
        mark = "!" if kind.startswith("image/") else ""  # Markdown embeds pictures only
        return Shown(exhibit.name, title, html, f"{mark}[{title}]({place})")
    if exhibit.suffix == ".json":
        html = Markup('<div data-attention="{}"><div class="plot"></div></div>').format(exhibit.content.decode())
        return Shown(exhibit.name, title, html, describe_attention(exhibit.content, place))
    name = Path(place).name or f"{exhibit.name}{exhibit.suffix}"
    return Shown(exhibit.name, title, Markup('<a href="{}">{}</a>').format(place, name), f"[{name}]({place})")


def show_together(exhibits: Sequence[Exhibit], title: str, place: str = "", prompt: str = "") -> Shown:
    """Show exhibits of the same values, such as a sound and its spectrogram, as one; the arguments are those of `show`.

    Pictures come first.
    """
    shown = [show(each, title, place, prompt) for each in sorted(exhibits, key=lambda each: each.suffix != ".png")]
    html, markdown = Markup().join(each.html for each in shown), "\n\n".join(each.markdown for each in shown)
    return Shown(shown[0].name, title, html, markdown)


def mark_prompt(text: str, prompt: str) -> Markup:
    """Return a text whose prompt, with which it begins, is marked; a prompt of blanks is made visible."""
    if not prompt or not text.startswith(prompt):
        return escape(text)
    shown = prompt if prompt.strip() else re.sub("\n", "\u23ce", prompt).replace(" ", "\u2423")
    return Markup('<mark title="prompt">{}</mark>{}').format(shown, text[len(prompt) :])


def describe_attention(content: bytes, place: str) -> str:
    """Return Markdown that leads to the attention to a text."""
    about = json.loads(content)
    text = "".join(about["tokens"]).strip()
    size = f"{about['layers']} layers with {about['heads']} heads"
    return f"[Attention]({place}) of {size} to `{text}`, which index.html draws"


def split_texts(content: str) -> list[str]:
    """Return the texts of a YAML list."""
    return list(YAML(typ="safe", pure=True).load(content))


TEXTS: dict[str, Callable[[str], list[str]]] = {".txt": lambda text: [text], ".yaml": split_texts}
