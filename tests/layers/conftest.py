"""The tokens of the small language model."""

from tests.models.conftest import tokens

__all__ = ["tokens"]
