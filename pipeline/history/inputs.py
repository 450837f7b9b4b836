"""The inputs of a stage instance, noted before it reads them and compared when it ends.

DVC hashes params.yaml, code and data when a stage has ended, and writes the hashes into dvc.lock next to the result. An
edit while the stage ran would thus be recorded as the source of a result that it did not make. dvc.yaml says which
inputs an instance has. Large files are not read: size and time tell whether they are still the same.
"""

import contextlib
import functools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import artifacts, code, params, plugins
from pipeline.artifacts import ArtifactError
from pipeline.params import Params

SMALL = {".json", ".py"}  # `check` and others write them again with the same content, which is no change
SHOWN = 3  # changes that a message names


@dataclass(frozen=True)
class Inputs:
    """What an instance reads, as it was.

    names, values: its keys and sections of params.yaml, and their values.
    paths, files: its dependencies, and the hash, or size and time, of each of their files.
    package: the same of the modules of the package, and of the packages that bring plug-ins.
    settings, digest: what the digest of its code is made of; none without.
    """

    stage: str
    key: str
    names: list[str]
    values: dict[str, Any]
    paths: list[Path]
    files: dict[str, Any]
    package: dict[str, Any]
    settings: Params | None
    digest: str

    @property
    def name(self) -> str:
        """The instance, as DVC names it."""
        return f"{self.stage}@{self.key}" if self.key else self.stage

    def require_checked(self) -> None:
        """Refuse other code than the stage `check` has found, which is what dvc.lock will say of the result.

        Raises:
            ArtifactError: if the code has changed since.
        """
        for path in (path for path in self.paths if path.is_relative_to(code.FOLDER)):
            if path.exists() and json.loads(path.read_text(encoding="utf-8"))["digest"] != self.digest:
                msg = f"{self.name}: its code has changed since the stage check; run `dvc repro`, which checks it first"
                raise ArtifactError(msg)

    def require_same(self) -> None:
        """Refuse a result whose inputs are no longer the ones that were read.

        Raises:
            ArtifactError: with the changes.
        """
        if changes := list(self._find_changes()):
            named = ", ".join(changes[:SHOWN]) + (f" and {len(changes) - SHOWN} more" if len(changes) > SHOWN else "")
            msg = f"{self.name}: changed while it ran: {named}; its result is of the old inputs and does not count; "
            raise ArtifactError(msg + "start it again, with the new ones, or after you put the old ones back")

    def _find_changes(self) -> Iterator[str]:
        values = _read_values(self.names)
        for name, before in self.values.items():
            yield from _list_differences(f"{params.PATH}: {name}", before, values[name])
        now = _look_at(self.paths)
        yield from sorted(path for path in self.files.keys() | now.keys() if self.files.get(path) != now.get(path))
        if self.settings and _look_at(_find_packages()) != self.package:
            code.read_module.cache_clear()
            if code.digest(self.stage, self.key, self.settings) != self.digest:
                yield "its code"


def read(stage: str, key: str = "") -> Inputs:
    """Note the inputs of an instance; a key that params.yaml lacks has none, and the stage refuses it."""
    entry = _read_stages(_find_stages()).get(stage, {})
    item: Any = {}
    if "foreach" in entry:
        section = params.read_mapping(params.PATH, params.SECTIONS_SAID, params.FOLDER).get(entry["foreach"][2:-1])
        item = section.get(key) if isinstance(section, Mapping) else None
        entry = entry["do"] if isinstance(item, Mapping) else {}
    names, paths = ([_fill(text, key, item) for text in entry.get(kind, ())] for kind in ("params", "deps"))
    deps = [Path(path) for path in paths]
    settings = _load_settings(stage, key) if any(path.is_relative_to(code.FOLDER) for path in deps) else None
    return Inputs(
        stage,
        key,
        names,
        _read_values(names),
        deps,
        _look_at(deps),
        _look_at(_find_packages()),
        settings,
        code.digest(stage, key, settings) if settings else "",
    )


def _find_packages() -> list[Path]:
    """Return the folders of the package and of those that bring plug-ins."""
    modules = {module for family in plugins.FAMILIES for module in plugins.find_installed(family).values()}
    return [plugins.PACKAGE, *sorted({plugins.find_package(module) for module in modules})]


def _find_stages() -> Path:
    """Return the project's dvc.yaml; without one, that of the repository that the package is in."""
    here = Path("dvc.yaml").resolve()
    return here if here.exists() else plugins.PACKAGE.parent / "dvc.yaml"


@functools.cache
def _read_stages(path: Path) -> dict[str, Any]:
    """Return the stages of a dvc.yaml."""
    stages: dict[str, Any] = params.read_mapping(path, "a mapping with stages", "the project's folder")["stages"]
    return stages


def _fill(text: str, key: str, item: Mapping[str, Any]) -> str:
    """Put the key and the values of its section into a template of dvc.yaml."""
    return re.sub(r"\$\{item\.(\w+)\}", lambda match: str(item.get(match[1])), text.replace("${key}", key))


def _load_settings(stage: str, key: str) -> Params:
    """Load what the digest of an instance's code needs: for a data set only its section, which needs no torch."""
    if stage in code.CALLED_OF_SOURCES:
        return Params.model_construct(data={key: params.load_data(key)}, networks={}, models={}, metrics={}, runs={})
    return params.load()


def _list_differences(name: str, before: Any, now: Any) -> Iterator[str]:
    """List the leaves of nested mappings that differ."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in sorted({*before, *now}):
            yield from _list_differences(f"{name}.{key}", before.get(key), now.get(key))
    elif before != now:
        yield f"{name} ({before!r}, now {now!r})"


def _read_values(names: list[str]) -> dict[str, Any]:
    """Return the values of params.yaml by dotted name; None for one that it lacks."""
    values = {}
    everything = params.read_mapping(params.PATH, params.SECTIONS_SAID, params.FOLDER) if names else {}
    for name in names:
        value: Any = everything
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        values[name] = value
    return values


def _look_at(paths: list[Path]) -> dict[str, Any]:
    """Return the hash of each small file at or below the paths, and size and time of the others."""
    found: dict[str, Any] = {}
    for path in (each for root in paths for each in [root, *root.rglob("*")]):
        with contextlib.suppress(FileNotFoundError):  # it is being replaced
            if path.is_file() and "__pycache__" not in path.parts:
                about = path.stat()
                is_small = path.suffix in SMALL
                found[str(path)] = artifacts.digest(path) if is_small else (about.st_size, about.st_mtime_ns)
    return found
