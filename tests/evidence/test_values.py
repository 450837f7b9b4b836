"""A name finds its declaration, and the names next to it, by templates whose answers are known."""

import pytest

from pipeline.artifacts import ArtifactError
from pipeline.evidence.values import (
    Value,
    fill_name,
    find_companion,
    find_count,
    find_flaw,
    find_followed,
    find_value,
    is_measurement,
    list_counts,
    list_fields,
    list_overs,
    load_values,
    match_name,
    sort_names,
)

SEEN, SPLIT = ("network",), ("reference.{split}", "scores")
VALUES = {
    "samples": Value(role="count", in_protocol=True),
    "d_far_{network}": Value(direction="lower", counts="samples", depends=SEEN),
    "d_{network}": Value(direction="lower", headline=True, counts="samples", over="sets", depends=SEEN),
    "d_{network}_floor": Value(role="floor", of="d_{network}", depends=SEEN),
    "{split}_nats": Value(direction="lower", unit="nats", counts="{split}_targets", depends=SPLIT),
    "{split}_window_nats": Value(direction="lower", depends=SPLIT),
    "{split}_nats_se": Value(role="error", of="{split}_nats", over="blocks", depends=SPLIT),
    "{split}_bits": Value(
        direction="lower", follows="{split}_nats", rescale=lambda value, ratio: value * ratio, depends=SPLIT
    ),
    "{split}_targets": Value(role="count"),
    "{split}_words": Value(spoiled_by="{split}_lost", depends=SPLIT),
    "{split}_lost": Value(role="count", unit="lost words"),
    "d_{network}_reliable": Value(role="check", of="d_{network}", depends=SEEN),
}


@pytest.mark.parametrize(
    ("name", "template", "fields"),
    [
        ("samples", "samples", {}),
        ("d_a", "d_{network}", {"network": "a"}),
        ("d_a_b_floor", "d_{network}_floor", {"network": "a_b"}),
        ("d_far_a", "d_far_{network}", {"network": "a"}),
        ("test_nats", "{split}_nats", {"split": "test"}),
        ("test_window_nats", "{split}_window_nats", {"split": "test"}),
        ("test_nats_se", "{split}_nats_se", {"split": "test"}),
    ],
)
def test_the_most_literal_template_covers_a_name(name: str, template: str, fields: dict[str, str]) -> None:
    assert match_name(VALUES, name) == (template, fields)
    assert fill_name(VALUES, template, **fields) == name


@pytest.mark.parametrize("name", ["sample", "samples_x", "d_", "e_a", "nats", "d.a"])
def test_an_undeclared_name_has_no_template(name: str) -> None:
    assert match_name(VALUES, name) is None
    assert not is_measurement(VALUES, name)
    assert find_companion(VALUES, name, "floor") == find_count(VALUES, name) == find_followed(VALUES, name) == ""
    with pytest.raises(ArtifactError, match=f"{name}: the metric's VALUES declare no such value"):
        find_value(VALUES, name)


@pytest.mark.parametrize(
    ("name", "metrics", "flaw"),
    [
        ("test_words", {"test_lost": 1234.0}, "not reliable: 1,234 lost words"),
        ("test_words", {"test_lost": 0.0, "validation_lost": 5.0}, ""),
        ("test_words", {}, ""),
        ("test_nats", {"test_lost": 5.0}, ""),
        ("d_a", {"d_a_reliable": 0.0}, "not reliable"),
        ("d_a", {"d_a_reliable": 1.0, "d_b_reliable": 0.0}, ""),
        ("undeclared", {"test_lost": 5.0}, ""),
    ],
)
def test_a_value_is_not_reliable_if_its_check_or_a_count_says_so(
    name: str, metrics: dict[str, float], flaw: str
) -> None:
    assert find_flaw(VALUES, metrics, name) == flaw


def test_a_name_that_would_be_read_as_another_value_is_refused() -> None:
    expected = "d_{network} with network 'a_floor' gives d_a_floor, which is read as d_{network}_floor: choose another"
    with pytest.raises(ArtifactError) as caught:
        fill_name(VALUES, "d_{network}", network="a_floor")
    assert expected in str(caught.value)
    with pytest.raises(ArtifactError, match="read as d_far_"):
        fill_name(VALUES, "d_{network}", network="far_a")
    with pytest.raises(ArtifactError, match="declare no such template"):
        fill_name(VALUES, "e_{network}", network="a")


def test_the_names_next_to_a_name_have_its_fields() -> None:
    assert find_companion(VALUES, "d_a_b", "floor") == "d_a_b_floor"
    assert find_companion(VALUES, "d_far_a", "floor") == ""
    assert find_companion(VALUES, "test_nats", "error") == "test_nats_se"
    assert find_companion(VALUES, "test_window_nats", "error") == ""
    assert find_count(VALUES, "test_nats") == "test_targets"
    assert find_count(VALUES, "d_a") == "samples"
    assert find_followed(VALUES, "test_bits") == "test_nats"
    assert find_followed(VALUES, "test_nats") == ""


def test_the_protocol_has_the_counts_that_say_so_and_an_undeclared_name_is_refused() -> None:
    assert list_counts(VALUES, {"samples": 9.0, "test_targets": 8.0, "d_a": 1.0}) == {"samples": 9}
    with pytest.raises(ArtifactError, match="planted"):
        list_counts(VALUES, {"samples": 9.0, "planted": 1.0})


def test_a_value_depends_on_the_fields_of_its_template_and_on_those_of_every_number_and_a_count_on_none() -> None:
    assert list_fields(VALUES, "validation_nats") == ("code.metric", "reference.validation", "scores", "versions.torch")
    assert list_fields(VALUES, "d_a_floor") == ("code.metric", "network", "versions.torch")
    assert list_fields(VALUES, "samples") == list_fields(VALUES, "test_targets") == ()
    with pytest.raises(ArtifactError, match="planted: the metric's VALUES declare no such value"):
        list_fields(VALUES, "planted")


def test_tables_show_headlines_first_and_nothing_that_stands_next_to_another_value() -> None:
    names = ["test_targets", "test_nats_se", "test_nats", "d_a_floor", "samples", "d_b", "d_a", "undeclared", "d_far_a"]
    assert sort_names(VALUES, names) == ["d_b", "d_a", "samples", "d_far_a", "test_nats", "test_targets"]


def test_errors_say_what_they_are_over_once() -> None:
    assert list_overs(VALUES, ["test_nats", "test_nats_se", "validation_nats_se"], "error") == ["blocks"]
    assert list_overs(VALUES, ["d_a", "d_b", "d_a_floor"], "measurement") == ["sets"]


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"role": "floor"}, "expected `of`"),
        ({"of": "d"}, "expected `of` for each role but measurement"),
        ({"role": "count", "direction": "lower"}, "only a measurement has a direction"),
        ({}, "role measurement: expected `depends` for each role but count, got \\(\\)"),
        ({"role": "count", "depends": SEEN}, "role count: expected `depends` for each role but count"),
        ({"follows": "d", "depends": SEEN}, "expected both"),
        ({"rescale": max, "depends": SEEN}, "expected both"),
    ],
)
def test_a_declaration_that_contradicts_itself_is_refused(declared: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Value(**declared)  # type: ignore[arg-type]


def test_a_metric_that_is_no_more_is_named() -> None:
    with pytest.raises(ArtifactError, match="no metrics plug-in 'former'"):
        load_values("former")
