"""Recognises the form of regulated Chinese verse: quatrains (jueju) and eight-line poems (lüshi) of five or seven.

A poem is written one couplet per line: 5 + 5 or 7 + 7 characters, a comma between them and a stop at the end. All its
couplets have one length, and it has two or four of them. Rhyme and tones are not looked at.
"""

import re

GAP = "\n\n"  # between poems
COUPLETS = (2, 4)
HALF = "[〇\u3400-\u4dbf\u4e00-\u9fff]"  # a Chinese character, but for rare ones beyond the basic plane
COUPLET = re.compile(f"{HALF}{{5}}，{HALF}{{5}}[。？！]|{HALF}{{7}}，{HALF}{{7}}[。？！]")


def is_couplet(line: str) -> bool:
    """Say whether a line is a couplet of 5 + 5 or 7 + 7 characters."""
    return COUPLET.fullmatch(line) is not None


def is_regulated(poem: str) -> bool:
    """Say whether a poem, one couplet per line, has two or four couplets of one length and nothing else."""
    lines = poem.split("\n")
    return len(lines) in COUPLETS and len({len(line) for line in lines}) == 1 and all(map(is_couplet, lines))
