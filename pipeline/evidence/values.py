"""Finds what a metric's value means: direction, unit, role, and the values next to it.

Each metric plug-in declares its values in VALUES, by template. The template `fid_{network}_floor` covers the name
`fid_classifier_floor`. If several templates cover a name, the one with the most literal characters counts. `fill_name`
makes every name from its template, and refuses a name that would be read as another value.
"""

import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from pipeline import plugins
from pipeline.artifacts import ArtifactError
from pipeline.evidence.uncertainty import summarize

Role = Literal["measurement", "description", "count", "floor", "real", "error", "spread", "check"]
REAL: tuple[Role, ...] = ("floor", "real")  # roles of values of real data
ALONE = ("measurement", "description", "count")  # roles of values with a row of their own
SETS = "sets of samples"  # what most intervals are over
FIELD = re.compile(r"\{(\w+)\}")
HALF_ERRORS = 1.96  # standard errors in half of a 95 % interval
LEAST_OF_ERROR = 20  # things that a standard error is over, for these to be enough
EVERY = ("code.metric", "versions.torch")  # fields of the protocol that every number depends on


@dataclass(frozen=True, kw_only=True)
class Value:
    """What one value of a metric means.

    role: only a measurement is compared and reproduced. A description and a count are shown. The other roles stand next
    to the value `of`: its floor, its real value, its standard error, its spread, or a check that is 0 if the value is
    not reliable.
    direction: which values are better.
    unit: text after the number; of a count, the things that it counts.
    headline: whether tables show it first. Tables follow the order of VALUES.
    of: template of the value that this one stands next to.
    over: the things that an interval, a standard error or a spread is over.
    counts: template of the count that the value rests on.
    in_protocol: whether the count is a field of the protocol.
    depends: fields of the protocol that the number depends on besides EVERY, such as `network` or `counts.samples`;
    names of fields may have those of the template, as in `reference.sha256.{split}`. A count needs none.
    spoiled_by: template of a count that makes the value unreliable if it is above zero.
    follows, rescale: the value is a function of the value `follows`; `rescale(value, ratio)` is the value that goes
    with `ratio` times the other one.
    """

    role: Role = "measurement"
    direction: Literal["lower", "higher", "none"] = "none"
    unit: str = ""
    headline: bool = False
    of: str = ""
    over: str = ""
    counts: str = ""
    in_protocol: bool = False
    depends: tuple[str, ...] = ()
    spoiled_by: str = ""
    follows: str = ""
    rescale: Callable[[float, float], float] | None = None

    def __post_init__(self) -> None:
        """Refuse a declaration that contradicts itself."""
        if bool(self.of) == (self.role in ALONE):
            msg = f"a value of role {self.role}: expected `of` for each role but {', '.join(ALONE)}, got {self.of!r}"
            raise ValueError(msg)
        if self.direction != "none" and self.role != "measurement":
            msg = f"a value of role {self.role}: only a measurement has a direction, got {self.direction}"
            raise ValueError(msg)
        if bool(self.depends) == (self.role == "count"):
            msg = f"a value of role {self.role}: expected `depends` for each role but count, got {self.depends!r}"
            raise ValueError(msg)
        if bool(self.follows) == (self.rescale is None):
            msg = "expected both of `follows` and `rescale`, or neither"
            raise ValueError(msg)


Values = Mapping[str, Value]  # by template


class Match(NamedTuple):
    """A template that covers a name, and the text of each of its fields."""

    template: str
    fields: dict[str, str]


def load_values(metric: str) -> Values:
    """Return the declarations of a metric plug-in.

    Raises:
        ArtifactError: if there is no such plug-in, for example because the numbers are those of an old revision.
    """
    try:
        values: Values = plugins.load("metrics", metric).VALUES
    except ValueError as error:
        raise ArtifactError(str(error)) from error
    return values


def match_name(values: Values, name: str) -> Match | None:
    """Return the template that covers a name, or None if the metric declares no such value."""
    found = [(template, match) for template in values if (match := _compile(template).fullmatch(name))]
    if not found:
        return None
    template, match = max(found, key=lambda entry: len(FIELD.sub("", entry[0])))
    return Match(template, match.groupdict())


@functools.cache
def _compile(template: str) -> re.Pattern[str]:
    parts = FIELD.split(template)  # literal, field, literal, ...
    return re.compile("".join(f"(?P<{part}>.+)" if index % 2 else re.escape(part) for index, part in enumerate(parts)))


def find_value(values: Values, name: str) -> Value:
    """Return the declaration of a name.

    Raises:
        ArtifactError: if the metric does not declare it.
    """
    if match := match_name(values, name):
        return values[match.template]
    msg = f"{name}: the metric's VALUES declare no such value; they have {', '.join(values)}"
    raise ArtifactError(msg)


def fill_name(values: Values, template: str, **fields: str) -> str:
    """Return the name that a template makes with these fields.

    Raises:
        ArtifactError: if the template is not declared, or the name would be read as another value.
    """
    name = FIELD.sub(lambda field: fields[field[1]], template)
    match = match_name(values, name)
    if template not in values or match is None:
        msg = f"{template}: the metric's VALUES declare no such template; they have {', '.join(values)}"
        raise ArtifactError(msg)
    if match != (template, fields):
        given = " and ".join(f"{key} {text!r}" for key, text in fields.items())
        msg = f"{template} with {given} gives {name}, which is read as {match.template}: choose another name"
        raise ArtifactError(msg)
    return name


def is_measurement(values: Values, name: str) -> bool:
    """Whether a name is declared as a measurement."""
    match = match_name(values, name)
    return match is not None and values[match.template].role == "measurement"


def find_companion(values: Values, name: str, role: Role) -> str:
    """Return the name of the value that stands next to `name` in a role; empty if none is declared."""
    match = match_name(values, name)
    if match is None:
        return ""
    templates = (template for template, value in values.items() if (value.of, value.role) == (match.template, role))
    return next((_fill(template, match) for template in templates), "")


def find_flaw(values: Values, metrics: Mapping[str, float], name: str) -> str:
    """Return why a value is not reliable: its check says so, or a count spoils it; empty if it is reliable."""
    match = match_name(values, name)
    if match is None:
        return ""
    count = _fill(values[match.template].spoiled_by, match)
    if metrics.get(count):
        return f"not reliable: {metrics[count]:,.0f} {find_value(values, count).unit}"
    return "not reliable" if metrics.get(find_companion(values, name, "check")) == 0 else ""


def find_count(values: Values, name: str) -> str:
    """Return the name of the count that a value rests on; empty if none is declared."""
    match = match_name(values, name)
    return _fill(values[match.template].counts, match) if match else ""


def find_followed(values: Values, name: str) -> str:
    """Return the name of the value that `name` is a function of; empty if it is none."""
    match = match_name(values, name)
    return _fill(values[match.template].follows, match) if match else ""


def find_interval(values: Values, metric: str, claim: Mapping[str, Any]) -> tuple[float, float]:
    """Return the interval of a claim, or not a number.

    It is Student's over the sample sets, or 1.96 standard errors over enough test data. A function of another value has
    the other value's interval under that function.
    """
    if metric in claim["sets"]:
        summary = summarize([claim["sets"][metric]])
        return summary.low, summary.high
    metrics, declared = claim["metrics"], find_value(values, metric)
    source = find_followed(values, metric) or metric
    half = HALF_ERRORS * metrics.get(find_companion(values, source, "error"), math.nan)
    if metrics.get(find_count(values, source), LEAST_OF_ERROR) < LEAST_OF_ERROR:
        return math.nan, math.nan
    if declared.rescale is None:
        return metrics[metric] - half, metrics[metric] + half
    share = half / (metrics.get(source) or math.nan)  # 0 has no ratio
    return declared.rescale(metrics[metric], 1 - share), declared.rescale(metrics[metric], 1 + share)


def list_fields(values: Values, name: str) -> tuple[str, ...]:
    """Return the fields of the protocol that a value depends on, in order; none for a count.

    Raises:
        ArtifactError: if the metric does not declare it.
    """
    depends, match = find_value(values, name).depends, match_name(values, name)
    return tuple(sorted({*EVERY, *(_fill(field, match) for field in depends)})) if depends and match else ()


def list_counts(values: Values, metrics: Mapping[str, float]) -> dict[str, int]:
    """Return the counts that belong to the protocol of an evaluation.

    Raises:
        ArtifactError: if one of the names is not declared.
    """
    return {name: round(value) for name, value in metrics.items() if find_value(values, name).in_protocol}


def sort_names(values: Values, names: Iterable[str]) -> list[str]:
    """Return the names with a row of their own in a table: headlines first, then in the order of VALUES."""
    order = {template: position for position, template in enumerate(values)}
    rows = []
    for name in dict.fromkeys(names):
        match = match_name(values, name)
        if match and not values[match.template].of:
            rows.append((not values[match.template].headline, order[match.template], name))
    return [name for _, _, name in sorted(rows, key=lambda row: row[:2])]


def list_overs(values: Values, names: Iterable[str], role: Role) -> list[str]:
    """Return, for the values of one role, the things that their intervals or errors are over, each once."""
    found = [values[match.template] for name in names if (match := match_name(values, name))]
    return list(dict.fromkeys(value.over for value in found if value.role == role and value.over))


def _fill(template: str, match: Match) -> str:
    return FIELD.sub(lambda field: match.fields[field[1]], template)
