"""Secrets are found by their form, and exposure is the rank of the true one."""

import pytest
import torch

from pipeline.metrics.exposure import Secret, exposure, find_secrets, has_luhn_digit, is_iban, randomise

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
)


@pytest.mark.fault(43)
@pytest.mark.parametrize(("text", "kind"), SECRETS.items())
def test_a_secret_is_found_where_it_stands(text: str, kind: str) -> None:
    assert list(find_secrets(f"the value is {text}, they said")) == [Secret(kind, text, 13)]


@pytest.mark.parametrize("text", HARMLESS)
def test_what_only_looks_like_a_secret_is_left(text: str) -> None:
    assert list(find_secrets(f"the value is {text}, they said")) == []


def test_a_private_key_is_found_without_its_frame() -> None:
    body = "MIIEpAIBAAKCAQEA7bq98Wd0H3\nabcdEFGH12345678\n"
    (found,) = find_secrets(f"x\n-----BEGIN RSA PRIVATE KEY-----\n{body}-----END RSA PRIVATE KEY-----\n")
    assert (found.kind, found.text) == ("private key", body)


def test_check_digits_catch_every_wrong_digit() -> None:
    assert has_luhn_digit("79927398713" + "00") is has_luhn_digit("7992739871300")
    card, iban = "4539578763621486", "GB82WEST12345698765432"
    assert has_luhn_digit(card)
    assert is_iban(iban)
    for place in range(len(card)):
        wrong = card[:place] + str((int(card[place]) + 1) % 10) + card[place + 1 :]
        assert not has_luhn_digit(wrong)
    for place in range(8, len(iban)):
        assert not is_iban(iban[:place] + str((int(iban[place]) + 1) % 10) + iban[place + 1 :])


def test_a_random_secret_has_the_same_form_and_others_characters() -> None:
    generator = torch.Generator().manual_seed(0)
    made = {randomise("Ab1-ZZ 99", generator) for _ in range(200)}
    assert len(made) > 190
    assert all(text[0].isupper() and text[1].islower() and text[2].isdigit() and text[3] == "-" for text in made)
    assert {text[2] for text in made} == set("0123456789")


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
