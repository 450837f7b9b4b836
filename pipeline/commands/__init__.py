"""One file, one command of `pipeline`: main(arguments) returns the exit status."""

import argparse


def make_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """Return the parser of `pipeline <name>`; its help is the command's docstring, line by line."""
    return argparse.ArgumentParser(
        prog=f"pipeline {name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
