"""params.yaml: what is right loads, what is wrong is named in full."""

import copy
import datetime as dt
import json
import math
import runpy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from ruamel.yaml import YAML

from pipeline import params, plugins
from pipeline.params import Params, ParamsError

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = YAML(typ="safe", pure=True).load(ROOT / "params.yaml")
ABSENT = object()  # as a value: delete the key

Write = Callable[[dict[str, Any]], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a copy of the shipped params.yaml with other values at dotted keys."""

    def write_copy(changes: dict[str, Any]) -> Path:
        values = copy.deepcopy(SHIPPED)
        for key, value in changes.items():
            *path, last = key.split(".")
            section = values
            for part in path:
                section = section[part]
            if value is ABSENT:
                del section[last]
            else:
                section[last] = value
        target = tmp_path / "params.yaml"
        with target.open("w", encoding="utf-8") as file:
            YAML(typ="safe", pure=True).dump(values, file)
        return target

    return write_copy


def refusal(path: Path) -> str:
    with pytest.raises(ParamsError) as caught:
        params.load(path)
    return str(caught.value)


def problems(path: Path) -> list[str]:
    """The lines of a refusal without its first, which names the file."""
    first, *lines = refusal(path).splitlines()
    assert str(path) in first
    return [line.strip() for line in lines]


def test_the_shipped_params_load_and_keep_their_values() -> None:
    loaded = params.load(ROOT / "params.yaml")
    assert set(loaded.runs) == set(SHIPPED["runs"])
    for section in ("data", "networks", "metrics"):
        assert {
            name: config.model_dump(exclude_unset=True) for name, config in getattr(loaded, section).items()
        } == SHIPPED[section]
    for name, run in SHIPPED["runs"].items():
        assert loaded.runs[name].model_dump(exclude_unset=True) == run
        section = type(loaded.models[name])(**SHIPPED["models"][run["model"]] | run["changes"])
        assert loaded.models[name] == section


def test_every_plug_in_config_refuses_unknown_keys_and_changes() -> None:
    families = [family for family, needed in plugins.NEEDED.items() if "Config" in needed]
    configs = [plugins.load(family, name).Config for family in families for name in plugins.names(family)]
    assert configs
    for config in configs:
        assert config.model_config["extra"] == "forbid"
        assert config.model_config["frozen"]
        assert config.model_config["strict"]


def test_an_unknown_key_is_refused_in_full_with_the_nearest_valid_one(write: Write) -> None:
    nearest = {
        "data.images.split_sed": "split_seed",
        "data.text.tokeniser": "tokenizer",
        "metrics.images.neighbors": "neighbours",
        "metrics.images.sampling.cuont": "count",  # nested: the nearest of the inner section, not of the outer
        "metrics.text.sampling.temprature": "temperature",
        "models.gan.generator_lerning_rate": "generator_learning_rate",
        "models.transformer.contxt": "context",
        "models.vae.lerning_rate": "learning_rate",
        "networks.classifier.witdh": "width",
        "runs.gan.metrics": "metric",
    }
    expected = [f"{key}: unknown key, did you mean {known!r}?" for key, known in nearest.items()]
    assert problems(write(dict.fromkeys(nearest, 1))) == expected
    found = problems(write({"runs.gan.weights": {"adress": "outside"}}))
    assert "runs.gan.weights.adress: unknown key, did you mean 'address'?" in found


def test_an_unknown_key_that_resembles_none_lists_the_known_ones(write: Write) -> None:
    [problem] = problems(write({"metrics.text.sampling.zzzzzzzz": 1}))
    assert problem.startswith("metrics.text.sampling.zzzzzzzz: unknown key; known are ")
    assert all(key in problem for key in SHIPPED["metrics"]["text"]["sampling"])


def test_an_unknown_top_level_section_is_refused_with_the_nearest_one(write: Write) -> None:
    assert problems(write({"modles": {}})) == ["modles: unknown section, did you mean 'models'?"]


def test_a_top_level_key_that_is_no_word_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text((ROOT / "params.yaml").read_text(encoding="utf-8") + "\n12: {}\n", encoding="utf-8")
    [problem] = problems(path)
    assert problem.startswith("12: unknown section")


@pytest.mark.parametrize("value", [ABSENT, None, 3, ["gan"]])
def test_a_section_that_is_no_mapping_is_missing(write: Write, value: object) -> None:
    assert problems(write(dict.fromkeys(SHIPPED, value))) == [
        f"{section}: missing section" for section in sorted(SHIPPED)
    ]


def test_a_wrong_type_is_named_with_what_was_expected_and_what_came(write: Write) -> None:
    wrong: dict[str, tuple[Any, str]] = {
        "metrics.images.sampling.count": ([1], "integer"),
        "metrics.text.sampling": (5, "dictionary"),
        "models.gan": (None, "dictionary"),
        "models.transformer.optimizer": ("sgd", "'adamw'"),  # the choices are listed
        "models.vae.dropout": (True, "number"),
        "models.vae.hidden": (10.0, "integer"),  # strict: nothing is converted in silence
        "models.vae.latent": (True, "integer"),
        "models.vae.learning_rate": ("1e-3", "number"),
        "models.vae.steps": ("many", "integer"),
        "runs.vae.network": (["classifier"], "string"),
        "runs.vae.seed": ("0", "integer"),
    }
    found = problems(write({key: value for key, (value, _) in wrong.items()}))
    for problem, (key, (value, expected)) in zip(found, wrong.items(), strict=True):
        assert problem.startswith(f"{key}: ")
        assert expected in problem
        assert problem.endswith(f"got {value!r}")


@pytest.mark.parametrize("value", ["balance", [], [0, -1], ["cat"], [True], 3, None])
def test_labels_that_are_no_rule_are_refused_with_the_rules(write: Write, value: object) -> None:
    expected = "expected test, train, balanced or a list of classes such as [0, 3]"
    assert problems(write({"metrics.images.sampling.labels": value})) == [
        f"metrics.images.sampling.labels: {expected}, got {value!r}"
    ]


@pytest.mark.parametrize("value", ["train", "balanced", [3], [0, 0, 7]])
def test_labels_are_a_rule_or_a_list(write: Write, value: object) -> None:
    sampling: Any = params.load(write({"metrics.images.sampling.labels": value})).metrics["images"].sampling
    assert sampling.labels == value


WORDS = ("v1.5", "a b", "it's", "x/y", "..", "$(touch x)", "-x", "A", "\u00e9", "", "a" * 65, "2026-11-28", "a\n")
TYPED = (dt.date(2026, 11, 28), 2, 1.5, True, None)


@pytest.mark.parametrize("section", SHIPPED)
def test_a_key_that_is_no_name_for_a_folder_a_shell_dvc_and_yaml_is_refused_in_full(write: Write, section: str) -> None:
    path = write({section: {**SHIPPED[section], **{name: {} for name in (*WORDS, *TYPED)}}})
    message = refusal(path)
    for name in WORDS:
        assert f"{section}.{name}: expected a name of a lowercase letter, then up to 63 " in message
        assert f"; got {name!r}\n" in message + "\n"
    for name, kind in zip(TYPED, ("date", "int", "float", "bool", "NoneType"), strict=True):
        assert f"got {name!r}, which YAML reads as {kind}" in message
    assert message.count("expected a name") == len(WORDS) + len(TYPED)


@pytest.mark.parametrize("name", ["none", "null", "true", "no", "con", "com1"])
def test_a_reserved_name_is_refused(write: Write, name: str) -> None:
    assert problems(write({f"runs.{name}": SHIPPED["runs"]["gan"]})) == [f"runs.{name}: the name is reserved"]


def test_names_of_letters_digits_and_dashes_are_taken(write: Write) -> None:
    names = ("v1-5", "a_b", "run2026-11-28", "a" * 64)
    assert set(params.load(write({f"runs.{name}": SHIPPED["runs"]["gan"] for name in names})).runs) > set(names)


def test_a_path_at_which_dvc_stops_is_named_with_its_key(write: Write, tmp_path: Path, monkeypatch: Any) -> None:
    own = {"source": "text_file", "path": "novel.txt"}
    loaded = params.load(write({"data.text": SHIPPED["data"]["text"] | own, "data.images.path": "nowhere"}))
    monkeypatch.chdir(tmp_path)
    (tmp_path / loaded.data["speech"].path).mkdir(parents=True)
    images, text = params.find_bad_paths(loaded)
    assert images.startswith("data.images.path: 'nowhere' not found: mnist5k ignores it, but DVC watches it")
    assert text.startswith("data.text.path: 'novel.txt' not found: expected your files there")
    for name in ("nowhere", "novel.txt"):
        (tmp_path / name).touch()
    assert params.find_bad_paths(loaded) == []
    for path in (".", "data", "data/raw", "data/raw/text"):
        (tmp_path / path).mkdir(parents=True, exist_ok=True)
        [text] = params.find_bad_paths(params.load(write({"data.text.path": path, "data.images.path": "nowhere"})))
        assert text.startswith(f"data.text.path: {path!r} holds what the stages make; name a folder without data/raw")


def test_a_value_out_of_range_is_named_with_what_came(write: Write) -> None:
    outside: dict[str, float] = {
        "data.images.split_seed": -1,
        "data.images.validation": 0,
        "data.text.vocabulary": 256,  # BPE starts from 256 bytes: that would be no merge
        "metrics.text.sampling.top_p": 1.01,
        "models.gan.batch_size": -1,
        "models.transformer.learning_rate": 0.0,
        "models.vae.beta": math.nan,
        "models.vae.dropout": 1.5,
        "models.vae.learning_rate": math.inf,
        "models.vae.steps": -1,
        "runs.gan.seed": -3,
    }
    for problem, (key, value) in zip(problems(write(outside)), outside.items(), strict=True):
        assert problem.startswith(f"{key}: ")
        assert problem.endswith(f"got {value!r}")


def test_a_missing_key_is_named(write: Write) -> None:
    keys = [
        "data.text.test",
        "metrics.images.sampling.count",
        "models.vae.beta",
        "networks.classifier.seed",
        "runs.gan.changes",
    ]
    assert problems(write(dict.fromkeys(keys, ABSENT))) == [f"{key}: missing key" for key in keys]


def test_a_missing_plug_in_name_is_a_missing_key(write: Write) -> None:
    found = problems(write({"data.images.source": ABSENT, "networks.classifier.network": ABSENT}))
    for problem, key in zip(found, ("data.images.source", "networks.classifier.network"), strict=True):
        assert problem.startswith(f"{key}: missing key")


def test_a_mistyped_plug_in_name_is_an_unknown_key(write: Write) -> None:
    mistyped = {"data.images.source": ABSENT, "data.images.sorce": "mnist5k"}
    assert problems(write(mistyped)) == ["data.images.sorce: unknown key, did you mean 'source'?"]


@pytest.mark.parametrize("value", [None, "mnist5k", ["mnist5k"]])
def test_a_section_with_a_plug_in_that_is_no_mapping_says_so(write: Write, value: object) -> None:
    keys = ("data.images", "networks.classifier")
    for problem, key in zip(problems(write(dict.fromkeys(keys, value))), keys, strict=True):
        assert problem.startswith(f"{key}: ")
        assert problem.endswith(f"got {value!r}")


def test_all_problems_are_listed_at_once(write: Write) -> None:
    found = problems(
        write(
            {
                "data.images.source": "imagenet",
                "networks.classifier.width": "wide",
                "models.gan.latent": 0,
                "models.vae.betta": 1.0,
                "metrics.text.sampling.length": ABSENT,
                "runs.transformer.model": "rnn",
            }
        )
    )
    assert [problem.split(":")[0] for problem in found] == [
        "data.images.source",
        "metrics.text.sampling.length",
        "models.gan.latent",
        "models.vae.betta",
        "networks.classifier.width",
        "runs.transformer.model",
    ]


def test_an_unknown_source_or_network_lists_the_files_of_its_folder(write: Write) -> None:
    families = {"data.text.source": "data", "networks.classifier.network": "networks"}
    found = problems(write(dict.fromkeys(families, "nowhere")))
    for problem, (key, family) in zip(found, families.items(), strict=True):
        assert problem.startswith(f"{key}: no {family} plug-in 'nowhere': pipeline/{family}/ has ")
        assert problem.split(" has ")[1].split(", ") == plugins.names(family)


def test_a_section_of_models_or_metrics_without_a_file_is_refused(write: Write) -> None:
    families = ("metrics", "models")
    found = problems(write({f"{family}.flow": {} for family in families}))
    for problem, family in zip(found, families, strict=True):
        assert problem.startswith(f"{family}.flow: no {family} plug-in 'flow'")
        assert all(name in problem for name in plugins.names(family))


def test_a_layer_is_no_plug_in(write: Write) -> None:
    [problem] = problems(write({"models.layers": {}}))  # pipeline/layers/blocks.py exists, without a Config
    assert problem.startswith("models.layers: no models plug-in 'layers'")


def test_a_run_that_points_to_no_section_lists_the_sections_and_the_files_of_the_folder(write: Write) -> None:
    sections = {
        "data": "data",
        "metric": "metrics",
        "model": "models",
        "network": "networks",
        "start": "runs",
    }  # of a key, the section
    found = problems(write({f"runs.vae.{key}": "zzz" for key in sections}))
    for problem, (key, section) in zip(found, sections.items(), strict=True):
        known = ", ".join(sorted(SHIPPED[section]))
        folder = f"; pipeline/{section}/ has {', '.join(plugins.names(section))}" if key in {"metric", "model"} else ""
        assert problem == f"runs.vae.{key}: no section {section}.zzz; known are {known}{folder}"


def test_a_mistyped_link_names_the_nearest_section(write: Write) -> None:
    found = problems(write({"runs.gan.model": "ganx", "runs.gan.data": "imges", "networks.classifier.data": "imags"}))
    assert found[0] == "networks.classifier.data: no section data.imags, did you mean 'images'?"
    assert found[1] == "runs.gan.data: no section data.imges, did you mean 'images'?"
    assert found[2].startswith("runs.gan.model: no section models.ganx, did you mean 'gan'?; pipeline/models/ has ")


def test_a_feature_network_must_be_one_and_look_at_images(write: Write) -> None:
    assert problems(write({"networks.classifier.network": "gan"})) == [
        (
            "networks.classifier.network: no networks plug-in 'gan': pipeline/networks/ has classifier, inception, "
            "rotation, simclr"
        )
    ]
    assert problems(write({"networks.classifier.data": "text"})) == [
        "networks.classifier.data: expected audio or images, data.text holds text"
    ]
    [problem] = problems(write({"runs.transformer.network": "classifier"}))
    assert (
        problem
        == "runs.transformer.network: metric text looks through no feature network, expected none, got classifier"
    )
    modes = {"sampling": {"count": 100, "sets": 1, "importance_samples": 1}}
    assert problems(write({"metrics.modes": modes, "runs.gan.metric": "modes", "runs.gan.network": "none"})) == [
        "runs.gan.network: metric modes needs a feature network, got none"
    ]


@pytest.mark.parametrize("value", ["missing", "", ["images"], 3])
def test_features_of_data_that_do_not_exist_are_refused(write: Write, value: object) -> None:
    found = problems(write({"networks.classifier.data": value}))
    assert found
    assert all(problem.startswith("networks.classifier.data: ") for problem in found)


def test_a_model_its_data_and_its_metric_must_be_of_one_kind(write: Write) -> None:
    [problem] = problems(write({"runs.vae.data": "text"}))
    assert problem.startswith("runs.vae: data text (numpy_docs) holds text, model vae learns audio or images, metric ")
    assert problem.endswith("metric images measures images")
    [problem] = problems(write({"runs.transformer.metric": "images", "runs.transformer.network": "classifier"}))
    assert problem.startswith("runs.transformer: data text (numpy_docs) holds text, model transformer learns text")
    assert problem.endswith("metric images measures images")


def test_changes_are_of_their_own_run_only(write: Write) -> None:
    twin = {**SHIPPED["runs"]["vae"], "changes": {"beta": 4.0, "latent": 7}}
    loaded = params.load(write({"runs.twin": twin}))
    shipped = SHIPPED["models"]["vae"]
    assert loaded.models["vae"].model_dump() == shipped
    assert loaded.models["twin"].model_dump() == {**shipped, "beta": 4.0, "latent": 7}
    assert loaded.models["gan"].model_dump() == SHIPPED["models"]["gan"]


def test_a_run_starts_from_another_run_and_not_from_itself(write: Write) -> None:
    loaded = params.load(write({"runs.tuned": {**SHIPPED["runs"]["gan"], "start": "gan", "freeze": ["layers.*"]}}))
    assert (loaded.runs["tuned"].start, loaded.runs["tuned"].freeze) == ("gan", ["layers.*"])
    circle = {"runs.tuned": {**SHIPPED["runs"]["gan"], "start": "gan"}, "runs.gan.start": "tuned"}
    assert problems(write(circle)) == [
        "runs.gan.start: the runs start from one another: gan <- tuned <- gan",
        "runs.tuned.start: the runs start from one another: tuned <- gan <- tuned",
    ]
    [problem] = problems(write({"runs.gan.skip": ["head.*"]}))
    assert problem == "runs.gan: freeze and skip are about the weights of a start, which is none"
    assert problems(write({"runs.none": SHIPPED["runs"]["gan"]})) == ["runs.none: the name is reserved"]


def test_a_prior_of_codes_starts_from_codes(write: Write) -> None:
    training = {"steps": 5, "batch_size": 4, "learning_rate": 0.01, "warmup": 0, "final_learning_rate": 0.0}
    training |= {"weight_decay": 0.0, "ema": 0.0, "shift": 0, "levels": [4, 4]}
    size = {"layers": 1, "heads": 2, "width": 16, "dropout": 0.0, "matrix_learning_rate": 0.01, "temperature": 1.0}
    training["pixel_temperature"] = 1.0
    small = {"width": 4, "blocks": 1, "prior_width": 4, "prior_blocks": 1, "beta": 1.0, "kl_warmup": 0}
    prior = {**training, **size, "codes_width": 4, "codes_blocks": 1, "conditional": True}
    models = {"models.codes": {**training, **small}, "models.codes_prior": prior}
    runs = {f"runs.{name}": {**SHIPPED["runs"]["vae"], "model": name} for name in ("codes", "codes_prior")}
    runs["runs.codes_prior"] |= {"start": "codes", "skip": ["prior.*"]}
    assert params.load(write({**models, **runs})).runs["codes_prior"].start == "codes"
    again = {"runs.again": {**runs["runs.codes_prior"], "start": "codes_prior", "changes": {"halvings": 3}}}
    [problem] = problems(write({**models, **runs, **again}))
    assert problem == "runs.again: halvings: expected 2 as in its start codes_prior, got 3"
    problem, *_ = problems(write({**models, **runs, "models.codes": {**training, **small, "halvings": 7}}))
    assert problem == "models.codes.halvings: input should be less than or equal to 5, got 7"
    [problem] = problems(write({**models, **runs, "models.codes_prior": {**prior, "codes_width": 8}}))
    assert problem == "runs.codes_prior: codes_width: expected 4 as in its start codes, got 8"
    [problem] = problems(write({**models, **runs, "runs.codes_prior.start": "vae"}))
    needed = "runs.codes_prior.start: model codes_prior needs a run of the model codes or codes_prior"
    assert problem == f"{needed}, got vae of the model vae"
    [problem] = problems(
        write({**models, **runs, "runs.codes_prior": {**runs["runs.codes_prior"], "start": "none", "skip": []}})
    )
    assert problem == f"{needed}, got none"


def test_changes_are_checked_like_the_model_section(write: Write) -> None:
    [problem] = problems(write({"runs.vae.changes": {"lerning_rate": 1.0e-3}}))
    assert problem == "runs.vae.changes.lerning_rate: unknown key, did you mean 'learning_rate'?"
    [problem] = problems(write({"runs.vae.changes": {"ema": 7.0}}))
    assert problem.startswith("runs.vae.changes.ema: ")
    assert problem.endswith("got 7.0")


@pytest.mark.parametrize(("text", "value"), [("1e-3", 1e-3), ("5E-4", 5e-4), ("1.e-2", 1e-2), (".5", 0.5)])
def test_numbers_of_yaml_1_2_are_floats(tmp_path: Path, text: str, value: float) -> None:
    # YAML 1.1, PyYAML's dialect, reads 1e-3 as a string.
    path = tmp_path / "params.yaml"
    lines = (ROOT / "params.yaml").read_text(encoding="utf-8").splitlines()
    index = next(i for i, line in enumerate(lines) if line.startswith("    beta: "))
    path.write_text("\n".join([*lines[:index], f"    beta: {text}", *lines[index + 1 :]]) + "\n", encoding="utf-8")
    loaded = params.load(path).models["vae"].model_dump()["beta"]
    assert isinstance(loaded, float)
    assert loaded == value


@pytest.mark.parametrize(
    "content",
    [
        b"data: [1, 2\nmodels: {",  # not closed
        b"data: {}\ndata: {}\n",  # twice the same key: PyYAML would keep the last
        b"\tdata: {}\n",
        b"data: *anchor\n",
        b"data: !!python/object/apply:os.getcwd []\n",
        b"data: {}\n---\ndata: {}\n",
        b"data: \x01\n",  # no YAML character
        b"data: \xff\xfe\n",  # no UTF-8
    ],
    ids=["open", "twice", "tab", "alias", "python", "documents", "control", "encoding"],
)
def test_invalid_yaml_is_a_params_error_that_names_the_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    assert f"{path}: not valid YAML" in refusal(path)


def repeat(first: str, pattern: str) -> str:
    """Write nine lines, each of which has the line before it ten times: 10^9 values."""
    lines = (f"x{each}: &x{each} " + pattern.format(", ".join([f"*x{each - 1}"] * 10)) for each in range(1, 9))
    return "\n".join([f"x0: &x0 {first}", *lines])


@pytest.mark.fault(64)
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a: " + "[" * 200 + "]" * 200, "at most 32 levels, line 1 has more"),
        ("a: " + "{a: " * 5000 + "1" + "}" * 5000, "at most 32 levels, line 1 has more"),
        ("a:\n" + "- " * 5000 + "1", "at most 32 levels"),
        (repeat("[1, 1]", "[{}]"), "at most 100000 values, line 6 has more, with its aliases"),
        (repeat("{a: 1}", "{{<<: [{}]}}"), "at most 100000 values, line 6 has more, with its aliases"),  # in the reader
        ("a: &a {b: [*a]}", "line 1: *a contains itself"),
        ("a: " + "a" * 10**6, "at most 262144 bytes, got 1000003"),
    ],
    ids=["lists", "mappings", "block", "aliases", "merges", "circle", "long"],
)
def test_a_yaml_file_that_asks_for_hours_or_for_all_memory_is_refused_in_one_short_line(
    tmp_path: Path, content: str, expected: str
) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(content, encoding="utf-8")
    begin = time.monotonic()
    message = refusal(path)
    assert time.monotonic() - begin < 5
    assert expected in message
    assert "\n" not in message
    assert len(message) < len(str(path)) + 100


def test_anchors_and_merge_keys_within_the_bounds_are_read(tmp_path: Path) -> None:
    path = tmp_path / "some.yaml"
    path.write_text("base: &b {a: 1}\nmore: {<<: *b, c: 2}\nlist: [*b, *b]\n", encoding="utf-8")
    found = params.read_mapping(path, "a mapping", "here")
    assert found == {"base": {"a": 1}, "more": {"a": 1, "c": 2}, "list": [{"a": 1}, {"a": 1}]}


def test_a_long_value_is_quoted_in_part(write: Write) -> None:
    (problem,) = problems(write({"runs.gan.seed": "7" * 10_000}))
    assert problem.startswith("runs.gan.seed: input should be a valid integer, got '777")
    assert problem.endswith("... (10002 characters)")
    assert len(problem) < 300


@pytest.mark.parametrize("content", ["", "- data\n- models\n", "params\n"])
def test_a_file_without_sections_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(content, encoding="utf-8")
    message = refusal(path)
    assert str(path) in message
    assert all(section in message for section in params.SECTIONS)


def test_a_missing_file_is_a_params_error_with_its_full_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ParamsError, match="not found") as caught:
        params.load()
    assert str(tmp_path / "params.yaml") in str(caught.value)


def test_validation_and_test_share_that_fill_everything_are_one_readable_problem(write: Write) -> None:
    [problem] = problems(write({"data.text.validation": 0.5, "data.text.test": 0.5}))
    assert problem == "data.text: validation + test must stay below 1, got 0.5 + 0.5"


def test_configs_are_frozen() -> None:
    loaded = params.load(ROOT / "params.yaml")
    sections = [
        *(
            section
            for family in (loaded.data, loaded.networks, loaded.models, loaded.metrics)
            for section in family.values()
        ),
        *loaded.runs.values(),
        loaded,
    ]
    for section in sections:
        field = next(iter(type(section).model_fields))
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, field, getattr(section, field))
    sampling: Any = loaded.metrics["images"]
    with pytest.raises(ValidationError, match="frozen"):  # nested sections too
        sampling.sampling.count = 1


def test_sections_are_those_of_the_params_class() -> None:
    assert set(params.SECTIONS) == set(Params.model_fields) == set(SHIPPED)


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_the_command_prints_each_resolved_run_and_fails_on_a_wrong_file(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write({"runs.vae.changes": {"beta": 2.0}})
    monkeypatch.chdir(tmp_path)
    runpy.run_module("pipeline.params", run_name="__main__")  # what `python -m` does, without importing torch anew
    printed = dict(line.split(" ", 1) for line in capsys.readouterr().out.splitlines())
    assert set(printed) == set(SHIPPED["runs"])
    assert json.loads(printed["vae"])["changes"] == {**SHIPPED["models"]["vae"], "beta": 2.0}
    write({"modles": {}})
    with pytest.raises(SystemExit, match=r"error: params\.yaml is not usable:\n  modles: unknown section"):
        runpy.run_module("pipeline.params", run_name="__main__")


# --- one section -------------------------------------------------------------


def test_load_data_gives_the_section_that_load_gives(write: Write) -> None:
    path = write({})
    for key, section in params.load(path).data.items():
        assert params.load_data(key, path) == section


@pytest.mark.parametrize(
    "changes",
    [
        {"data.text.tokeniser": "byte"},
        {"data.text.split_seed": ABSENT},
        {"data.text.validation": "half"},
        {"data.text.source": "no_source"},
        {"data.text.source": ABSENT},
        {"data.text": 3},
    ],
)
def test_load_data_refuses_with_the_words_of_load(write: Write, changes: dict[str, Any]) -> None:
    path = write(changes)
    with pytest.raises(ParamsError) as caught:
        params.load_data("text", path)
    assert str(caught.value) == refusal(path)
    assert params.load_data("images", path)  # the others are none of its business


def test_load_data_passes_on_a_key_that_is_not_there(write: Write) -> None:
    with pytest.raises(KeyError, match="nothing"):
        params.load_data("nothing", write({}))
