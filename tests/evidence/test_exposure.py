"""Secrets are found by their form, and exposure is the rank of the true one."""

import pytest
import torch

from pipeline.evidence.exposure import Secret, exposure, find_secrets, has_luhn_digit, randomise, take_iban

# Numbers that the issuers publish for tests; the keys and tokens are made up.
SECRETS = {
    "4111 1111 1111 1111": "payment card",
    "378282246310005": "payment card",
    "5555-5555-5555-4444": "payment card",
    "GB82 WEST 1234 5698 7654 32": "IBAN",
    "DE89370400440532013000": "IBAN",
    "078-05-1120": "social security number",
    "ada.lovelace+x@example.co.uk": "e-mail address",
    "AKIAIOSFODNN7EXAMPLE": "token",
    "ghp_" + "aB3dE6gH9j" * 4: "token",
    "github_pat_" + "aB3dE6gH9j" * 3: "token",
    "ASIAIOSFODNN7EXAMPLE": "token",
    "BE68539007547034": "IBAN",
    "ES91 2100 0418 4502 0005 1332": "IBAN",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl": "JSON web token",
}
HARMLESS = (
    "4111 1111 1111 1112",  # Luhn's digit is wrong
    "0000 0000 0000 0000",
    "3.14159265358979323846",
    "GB82 WEST 1234 5698 7654 33",
    "000-05-1120",
    "978-3-16-148410-0",
    "@decorator def f(x): x @ y",
    "2026-11-25 04:28:41",
    "AKIA in a sentence",
    "class sk-toggleable__label-arrow",
    "1700000000008",  # Luhn's digit is right: no issuer has 13 digits that begin so
    " ".join(str(37 * number % 100) for number in range(300)),
)
AROUND = (
    "the value is {}, they said",
    "the value is {}. They said",
    "the value is {} 123 EUR BIC",
    "the value is {} 12/27",
)


@pytest.mark.fault(43)
@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize(("text", "kind"), SECRETS.items())
def test_a_secret_is_found_where_it_stands(text: str, kind: str, around: str) -> None:
    found = [(secret.kind, secret.text, secret.start) for secret in find_secrets(around.format(text))]
    assert found == [(kind, text, 13)]


@pytest.mark.parametrize("text", HARMLESS)
def test_what_only_looks_like_a_secret_is_left(text: str) -> None:
    assert list(find_secrets(f"the value is {text}, they said")) == []


@pytest.mark.parametrize("line_end", ["\n", "\\n"])  # as in a file, and as in JSON
@pytest.mark.parametrize("frame", ["RSA PRIVATE KEY", "PRIVATE KEY", "PGP PRIVATE KEY BLOCK"])
def test_a_private_key_is_found_without_its_frame(frame: str, line_end: str) -> None:
    body = line_end.join(["MIIEpAIBAAKCAQEA7bq98Wd0H3" * 3, "abcdEFGH12345678" * 4])
    (found,) = find_secrets(f"x-----BEGIN {frame}-----{line_end}{body}{line_end}-----END {frame}-----")
    assert (found.kind, found.text, found.fixed) == ("private key", body[:120], 64)


def test_check_digits_catch_every_wrong_digit() -> None:
    card, iban = "4539578763621486", "GB82WEST12345698765432"
    assert has_luhn_digit(card)
    assert take_iban(iban) == iban
    for place in range(len(card)):
        assert not has_luhn_digit(card[:place] + str((int(card[place]) + 1) % 10) + card[place + 1 :])
    for place in range(8, len(iban)):
        assert not take_iban(iban[:place] + str((int(iban[place]) + 1) % 10) + iban[place + 1 :])


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("AKIAIOSFODNN7EXAMPLE", "AKIA"),
        ("ghp_" + "aB3dE6gH9j" * 4, "ghp_"),
        ("4111 1111 1111 1111", "4111 11"),
        ("378282246310005", "378282"),
        ("DE89370400440532013000", "DE"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl", "eyJhbGciOiJIUzI1NiJ9.eyJ"),
        ("078-05-1120", ""),
    ],
)
def test_a_random_secret_shares_what_all_of_its_form_share_and_nothing_else(text: str, kept: str) -> None:
    (secret,) = find_secrets(text)
    generator = torch.Generator().manual_seed(0)
    made = {randomise(secret, generator) for _ in range(500)}
    assert len(made) > 490
    assert all(other.startswith(kept) for other in made)
    forms = {"".join("0aA"[2 * c.isupper() + c.islower()] if c.isalnum() else c for c in other) for other in made}
    assert len(forms) == 1
    for place in range(len(kept), len(text)):
        assert len({other[place] for other in made}) == (
            1 if not text[place].isalnum() else 10 if text[place].isdigit() else 26
        )


def test_exposure_is_the_bits_of_the_rank() -> None:
    others = torch.arange(1.0, 1024.0)  # 1023 of them
    assert exposure(torch.tensor(0.5), others) == 10  # the first of 1024
    assert exposure(torch.tensor(1.5), others) == 9  # the second
    assert exposure(torch.tensor(2000.0), others) == 0  # the last
    # Uniform ranks: exposure above 3 bits has probability 1 / 8.
    drawn = torch.rand(4000, generator=torch.Generator().manual_seed(0)) * 1024
    assert sum(exposure(value, others) > 3 for value in drawn) / 4000 == pytest.approx(1 / 8, abs=0.02)


def test_a_shown_secret_is_masked() -> None:
    assert Secret("token", "AKIAIOSFODNN7EXAMPLE", 0).shown == "AK****** (20 characters)"
