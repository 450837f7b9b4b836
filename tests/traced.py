"""Runs one stage and writes traced.json: which top-level definitions of the package ran, by module.

python -m tests.traced train gan
"""

import importlib
import json
import sys
import threading
from pathlib import Path
from types import FrameType

GENERATED = "__create_fn__"  # the methods that dataclasses write
REQUIREMENTS = "pipeline.runtime.requirements"  # asks plug-ins, and takes nothing from them but a refusal
FOUND: dict[str, set[str]] = {}


def watch(frame: FrameType, event: str, argument: object) -> None:
    """Note the module and the first part of the name of each function that is called."""
    del argument
    module = str(frame.f_globals.get("__name__", ""))
    if event == "call" and module.startswith("pipeline."):
        name = frame.f_code.co_qualname.partition(".")[0]
        if name not in {*FOUND.get(module, ()), GENERATED} and not changes_nothing(frame):
            FOUND.setdefault(module, set()).add(name)


def changes_nothing(frame: FrameType | None) -> bool:
    """Say whether a call only imports a module, which is in every digest that reaches it, or only refuses."""
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if module == REQUIREMENTS or (frame.f_code.co_name == "<module>" and module.startswith("pipeline.")):
            return True
        frame = frame.f_back
    return False


stage, *arguments = sys.argv[1:]
module = importlib.import_module(f"pipeline.stages.{stage}")
threading.setprofile(watch)
sys.setprofile(watch)
module.main(*arguments)
sys.setprofile(None)
Path("traced.json").write_text(json.dumps({name: sorted(names) for name, names in FOUND.items()}), encoding="utf-8")
