"""Secrets in a text, and whether a language model has memorised them.

Found by their form: private keys, tokens of well-known services, payment cards (issuers' prefixes and groups, Luhn's
digit), IBANs (length by country, ISO 7064 modulo 97), United States social security numbers, e-mail addresses.

Exposure (Carlini et al. 2019, "The Secret Sharer"): log2 of how many secrets of the same form there are, less log2 of
the rank of the true one by the model's loss; estimated from `count` random ones, so at most log2(count + 1). A secret
that was not memorised is anywhere in the order: an exposure of b bits or more has probability 2^-b.
"""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

MOST = 120  # characters of a secret that are looked at


@dataclass(frozen=True)
class Secret:
    """A secret: what it is, its characters, where it starts in the text, and how many of them all of its form share."""

    kind: str
    text: str
    start: int
    fixed: int = 0

    @property
    def shown(self) -> str:
        """The secret made unreadable, so that a report does not spread it."""
        return f"{self.text[:2]}{'*' * 6} ({len(self.text)} characters)"


def has_luhn_digit(text: str) -> bool:
    """Say whether the digits of a text end in Luhn's check digit (ISO/IEC 7812) and are not all the same."""
    digits = [int(character) for character in text if character.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return len(set(digits)) > 1 and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


COUNTRIES = {  # by the characters of their IBAN (ISO 13616 registry)
    15: "NO",
    16: "BE",
    18: "DK FI NL",
    19: "SI",
    20: "AT EE LT LU",
    21: "CH HR LI LV",
    22: "BG DE GB IE",
    23: "AE GI IL",
    24: "AD CZ ES RO SA SE SK",
    25: "PT",
    26: "IS TR",
    27: "FR GR IT MC SM",
    28: "CY HU PL",
    31: "MT",
}
LENGTHS = {country: length for length, countries in COUNTRIES.items() for country in countries.split()}


def take_iban(text: str) -> str:
    """Return the International Bank Account Number that a text begins with, or nothing."""
    length = LENGTHS.get(text[:2], 0)
    match = re.match(rf"(?:[A-Z0-9] ?){{{length - 1}}}[A-Z0-9](?![A-Za-z0-9])", text) if length else None
    if match is None:
        return ""
    plain = match[0].replace(" ", "")
    number = int("".join(str(int(character, 36)) for character in plain[4:] + plain[:4]))
    return match[0] if number % 97 == 1 else ""


def _whole(text: str) -> str:
    return text


PREFIXES = r"A[KS]IA|gh[pousr]_|github_pat_|glpat-|xox[abprs]-|sk-|AIza"  # of tokens
SERVICES = (  # Amazon, GitHub, GitLab, Slack, OpenAI, Google
    r"\b(A[KS]IA[0-9A-Z]{16}\b|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{22,}|glpat-[\w-]{20,}|xox[abprs]-[\w-]{10,}"
    r"|sk-(?=[\w-]*\d)(?=[\w-]*[A-Z])[\w-]{20,}|AIza[\w-]{35})"
)
CARD = (  # Visa, Mastercard, Discover, JCB in fours; American Express
    r"(?<![\d.-])((?:4\d{3}|5[1-5]\d\d|2[2-7]\d\d|6011|65\d\d|35\d\d)([ -]?)\d{4}\2\d{4}\2\d{4}"
    r"|3[47]\d\d([ -]?)\d{6}\3\d{5})(?!\d|[.-]\d)"
)
KEY = r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----(?:\\n|\s)+([A-Za-z0-9+/=\s\\]{72,})"
SOCIAL = r"(?<![\d-])((?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4})(?![\d-])"
EMAIL = r"\b([\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){0,4}\.[A-Za-z]{2,})\b"
# Form of a secret, its first group; what of a match is one; and how many leading characters others of the form share.
FORMS: dict[str, tuple[str, Callable[[str], str], Callable[[str], int]]] = {
    "private key": (KEY, _whole, lambda _: 64),  # the first line of the body holds the key's type
    "token": (SERVICES, _whole, lambda text: len(re.match(PREFIXES, text)[0])),  # type: ignore[index]
    "JSON web token": (r"\b(eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]+)", _whole, lambda text: text.index(".") + 4),
    "payment card": (  # six digits name the issuer
        CARD,
        lambda text: text if has_luhn_digit(text) else "",
        lambda text: 7 if " " in text or "-" in text else 6,
    ),
    "IBAN": (r"\b([A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,36})", take_iban, lambda _: 2),
    "social security number": (SOCIAL, _whole, lambda _: 0),
    "e-mail address": (EMAIL, _whole, lambda _: 0),
}
WORDS = {"e-mail address"}  # made of words, which any language model prefers to random letters: no exposure


def find_secrets(text: str) -> Iterator[Secret]:
    """Yield the secrets of a text, kind by kind; of a long one its first characters."""
    for kind, (form, take, count_fixed) in FORMS.items():
        for match in re.finditer(form, text):
            if taken := take(match[1])[:MOST]:
                yield Secret(kind, taken, match.start(1), count_fixed(taken))


def randomise(secret: Secret, generator: torch.Generator) -> str:
    """Return another secret of the form: digits, capitals and small letters that are not fixed become random ones."""
    draws = torch.randint(2**31, (len(secret.text),), generator=generator).tolist()
    changed = list(secret.text)
    for place in range(secret.fixed, len(changed)):
        for first, size in (("0", 10), ("A", 26), ("a", 26)):
            if ord(first) <= ord(secret.text[place]) < ord(first) + size:
                changed[place] = chr(ord(first) + draws[place] % size)
    return "".join(changed)


def exposure(secret: Tensor, others: Tensor) -> float:
    """Return the exposure in bits of a secret, by its nats (scalar) and those of random others (N,)."""
    rank = 1 + int((others <= secret).sum())
    return math.log2(len(others) + 1) - math.log2(rank)
