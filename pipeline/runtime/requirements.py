"""Asks every later stage, before a stage computes anything, whether it can work with the data that there are.

Each model, feature network and metric has a function `require`, which refuses data that it would refuse in the end
anyway, and a kind may have one. `check` asks with the fields that params.yaml foresees; the later stages ask with the
prepared data too.
"""

import contextlib
from collections.abc import Iterator, Mapping

from pipeline import plugins
from pipeline.artifacts import ArtifactError
from pipeline.params import NONE, Known, Params, Source


def require_run(key: str, settings: Params, known: Mapping[str, Known]) -> None:
    """Ask the model, the feature network, the kind and the metric of a run.

    Args:
        key: the run.
        settings: all parameters.
        known: the data sets that are prepared for sure; of the other ones only foreseen fields count.

    Raises:
        ArtifactError: with the key to change.
    """
    run = settings.runs[key]
    known = {name: _foresee(source) for name, source in settings.data.items()} | dict(known)
    if fields := known[run.data].fields:
        with _naming(f"runs.{key}.model: {run.model} cannot learn {_describe_shape(run.data, settings)}"):
            plugins.load("models", run.model).require(settings.models[key], fields)
    if run.network != NONE:
        require_network(run.network, settings, known)
    kind = plugins.load("kinds", settings.data[run.data].KIND)
    if hasattr(kind, "require"):
        kind.require(key, settings, known)
    plugins.load("metrics", run.metric).require(key, settings, known)


def require_network(name: str, settings: Params, known: Mapping[str, Known]) -> None:
    """Ask a feature network; the other arguments are those of `require_run`.

    Raises:
        ArtifactError: with the key to change.
    """
    section = settings.networks[name]
    source = settings.data[section.data]
    data = known[section.data] if section.data in known else _foresee(source)
    ending = f"; `pipeline own {source.path}` writes sections that fit" if source.READS_PATH else ""
    if data.fields:
        beginning = f"networks.{name}.data: {section.network} cannot take {_describe_shape(section.data, settings)}"
        with _naming(beginning, ending):
            plugins.load("networks", section.network).require(section, data.fields)


def _foresee(source: Source) -> Known:
    """Return the fields that params.yaml tells of a data set."""
    module = plugins.load("data", source.source)
    return Known(module.foresee(source) if hasattr(module, "foresee") else {}, {})


def _describe_shape(data: str, settings: Params) -> str:
    """Return a data section and its keys that shape its values, such as 'data.images (data.images.size 50)'."""
    source = settings.data[data]
    keys = getattr(plugins.load("data", source.source), "SHAPED_BY", ())
    shape = ", ".join(f"data.{data}.{key} {getattr(source, key)}" for key in keys)
    return f"data.{data} ({shape or f'source {source.source}'})"


@contextlib.contextmanager
def _naming(beginning: str, ending: str = "") -> Iterator[None]:
    """Put the key in front of what a plug-in refuses, and advice behind it."""
    try:
        yield
    except ArtifactError as error:
        msg = f"{beginning}: {error}{ending}"
        raise ArtifactError(msg) from error
