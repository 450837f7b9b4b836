"""What a program says must never stop its work: a write that fails is dropped.

It fails when a terminal is closed, when the reader of a pipe has ended (`| head`), and when the disk under a log file
is full. `protect` is called where a program starts; nothing that prints has to care.
"""

import os
import sys
from contextlib import suppress
from typing import Any, TextIO


class Output:
    """A text stream to whoever still listens; everything but writing is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write, or drop what cannot be written."""
        with suppress(OSError, ValueError):  # ValueError: the stream is closed
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, or keep what cannot be written."""
        with suppress(OSError, ValueError):
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        """Return the stream's attribute, such as isatty or encoding."""
        return getattr(self.stream, name)


def protect() -> None:
    """Make standard output and standard error streams that cannot fail, for all that prints in this process."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # it was closed when Python started
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123 - until the process ends
        if not isinstance(stream, Output):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")  # of a name that the terminal cannot show
            setattr(sys, name, Output(stream))
