"""Tests of keywords: unknown ones are refused with the nearest name, and a single string is a sequence of one."""

import dataclasses
import inspect
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

import ckpt_probe as cp
from ckpt_probe.analysis.comparison.compare import Interval
from ckpt_probe.errors import UsageError
from ckpt_probe.extraction.config import Setup, Storage
from ckpt_probe.keywords import as_sequence, from_arguments, matching, suggestion, whole_argument
from ckpt_probe.metrics import entropy
from ckpt_probe.moments import Moments
from ckpt_probe.paths.options import PathOptions, PlaneOptions

SETTINGS = {
    "analyze": (cp.Settings,),
    "analyze_features": (cp.Settings,),
    "barriers": (PathOptions, Setup),
    "compare": (Interval,),
    "evaluate_path": (PathOptions, Setup),
    "evaluate_plane": (PlaneOptions, Setup),
    "extract_series": (Setup, Storage),
}
"""Dataclasses whose fields are keywords of a public function."""


@pytest.mark.parametrize("name", SETTINGS)
def test_defaults_of_keywords_are_those_of_the_settings(name: str) -> None:
    parameters = inspect.signature(getattr(cp, name)).parameters
    for kind in SETTINGS[name]:
        shared = [field for field in dataclasses.fields(kind) if field.name in parameters]
        assert len(shared) > 3
        for field in shared:
            assert parameters[field.name].default == field.default, field.name


def test_public_functions_name_every_keyword() -> None:
    for name in cp.__all__:
        value = getattr(cp, name)
        if inspect.isfunction(value):
            functions = [value]
        else:
            members = vars(value).items() if inspect.isclass(value) and not issubclass(value, Exception) else ()
            functions = [member for key, member in members if inspect.isfunction(member) and not key.startswith("_")]
        for function in functions:
            kinds = {parameter.kind for parameter in inspect.signature(function).parameters.values()}
            named_by_framework = function.__name__.startswith("on_")
            assert inspect.Parameter.VAR_KEYWORD not in kinds or named_by_framework, (name, function.__name__)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cp.extract_series("run", "out", batchsize=2), "extract_series: unknown keyword `batchsize`; did you"),
        (lambda: cp.extract_series("run", "out", split="test"), "`split`; did you mean splits"),
        (lambda: cp.analyze("dumps", centered=True), "analyze: unknown keyword `centered`; did you mean centred"),
        (lambda: cp.analyze_features(1, 2, toleranc=1), "`toleranc`; did you mean tolerance"),
        (lambda: cp.compare(["a", "b"], metric="accuracy"), "compare: unknown keyword `metric`; did you mean metrics"),
        (lambda: cp.evaluate_path("a", "b", "out", zzz=1), r"evaluate_path: unknown keyword `zzz`$"),
        (
            lambda: cp.interpolate("a", "b", out="c", alph=0.5),
            "interpolate: unknown keyword `alph`; did you mean alpha",
        ),
        (lambda: cp.train("c", "out", override=True), "train: unknown keyword `override`; did you mean overwrite"),
        (lambda: cp.matrix_entropy(torch.eye(2), normalised=True), "matrix_entropy: .*; did you mean normalized"),
        (lambda: cp.cka(torch.eye(2), torch.eye(2), y=1), r"cka: unknown keyword `y`; did you mean Y"),
        (lambda: cp.save_checkpoint("a", torch.nn.ReLU()), "`state_dict`: .* model.state_dict.., found ReLU"),  # pyright: ignore
        (lambda: cp.save_checkpoint("a", {"epoch": 3}), "a: `state_dict`: 'epoch' is not a tensor but of type int"),  # pyright: ignore
        (lambda: cp.prune("a", "b", "0.5"), "sparsity: expected a fraction of at least 0 and below 1, found '0.5'"),  # pyright: ignore
        (lambda: cp.prune("a", "b", 0.5, retrain="none.toml"), "none.toml: cannot be read"),
        (lambda: cp.Moments(class_count=3), "Moments: unknown keyword `class_count`; did you mean classes"),
        (
            lambda: cp.open_checkpoint("a", statekey="model"),
            "open_checkpoint: unknown keyword `statekey`; did",
        ),
        (
            lambda: cp.Probe(torch.nn.ReLU(), "r.jsonl", setting=1),
            "Probe: unknown keyword `setting`; did you mean",
        ),
        (lambda: cp.similarity("a", measure="cka"), "similarity: unknown keyword `measure`; did you mean measures"),
        (lambda: cp.Settings(toleranc=1), "Settings: unknown keyword `toleranc`; did you mean tolerance"),  # pyright: ignore
        (lambda: cp.Moments().compute(weight=1), "Moments.compute: unknown keyword `weight`; did you mean weights"),  # pyright: ignore
        (lambda: cp.losses.mir_loss(feature=1), "mir_loss: unknown keyword `feature`; did you mean features"),  # pyright: ignore
    ],
)
def test_an_unknown_keyword_is_refused_with_the_nearest_name(call, message: str) -> None:
    with pytest.raises(cp.UsageError, match=message):
        call()


def test_public_names_are_pickled_by_name() -> None:
    for value in (*(getattr(cp, name) for name in cp.__all__ if name != "losses"), cp.losses.cma):
        assert pickle.loads(pickle.dumps(value)) is value


def test_the_package_calls_its_functions_without_the_check() -> None:
    assert inspect.unwrap(cp.mir) is entropy.mir
    assert not hasattr(entropy.mir, "__wrapped__")
    assert issubclass(type("Own", (cp.Moments,), {}), Moments)


def test_a_suggestion_ignores_case_and_has_at_most_three_names() -> None:
    assert suggestion("LAYER", ["layers", "layer_store"]) == "; did you mean layers or layer_store?"
    assert suggestion("seed", ["rows_seed", "subset_seed", "seeds", "seed_a", "seeded"]).count(",") == 1
    assert suggestion("zzz", ["layers"]) == ""


def test_a_name_a_label_or_a_pattern_refers_to_names_ignoring_case() -> None:
    names, labels = ["class.mir", "class.hdr", "nc1.cdnv"], {"MIR": "class.mir", "CDNV": "nc1.cdnv", "acc": "accuracy"}
    assert matching("Class.MIR", names) == ["class.mir"]
    assert matching("cdnv", names, labels) == ["nc1.cdnv"]
    assert matching("CLASS.*", names, labels) == ["class.mir", "class.hdr"]
    assert matching("acc", names, labels) == []
    assert matching("a[b]", ["A[b]", "a[b]", "ab"]) == ["a[b]"]


def test_a_string_a_path_or_a_number_is_a_sequence_of_one() -> None:
    assert as_sequence("test") == ("test",)
    assert as_sequence(Path("a")) == (Path("a"),)
    assert as_sequence(2.0) == (2.0,)
    assert as_sequence(["a", "b"]) == ("a", "b")
    assert as_sequence(None) is None


def test_a_dataclass_takes_the_arguments_of_its_fields() -> None:
    assert from_arguments(Interval, {"seed": 3, "groups": ["a"]}) == Interval(seed=3)


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    batches = [(torch.randn(30, 4), torch.arange(30) % 3)]
    return cp.extract(model, batches, tmp_path / "step-000001.h5", split="test", device="cpu", layers=["0", "1"])


def test_a_single_name_is_accepted_in_place_of_a_list(dump: Path) -> None:
    [record] = cp.analyze(dump, splits="test", layers=False, orders=2)
    assert record["split"] == "test"
    assert "renyi_2.class.mir" in record
    assert [r["layer"] for r in cp.analyze(dump, splits="test")] == ["0", "1", "penultimate"]
    [matrix] = cp.similarity(dump, splits="test", measures="cka", layers="0")
    assert (matrix.measure, matrix.rows) == ("cka", ("0",))
    assert Setup(splits="test", layers=["a", "b"]) == Setup(splits=("test",), layers="a,b")


def test_per_class_records_are_those_of_the_command(dump: Path) -> None:
    records = cp.analyze(dump, per_class=True, layers=False)
    assert [record["class"] for record in records] == [0, 1, 2]
    assert sum(record["samples"] for record in records) == 30


def test_a_module_in_place_of_a_name_is_refused_with_an_explanation(tmp_path: Path) -> None:
    module = torch.nn.Linear(2, 2)
    with pytest.raises(cp.UsageError, match=r"found a Linear; extract\(model, loader, out\) takes a module itself"):
        cp.extract_series(tmp_path, tmp_path / "out", model=module)
    with pytest.raises(cp.UsageError, match=r"found str; extract_series\(source, out\) reads checkpoints from files"):
        cp.extract("run", [], tmp_path / "out.h5")  # pyright: ignore[reportArgumentType]


def test_moments_can_be_reset_and_loaded_from_a_state(tmp_path: Path) -> None:
    features, labels = np.random.default_rng(0).normal(size=(60, 5)), np.arange(60) % 3
    moments, loaded = cp.Moments(3), cp.Moments(3)
    moments.update(features[:40], labels[:40])
    loaded.load_state_dict(moments.state_dict())
    loaded.update(features[40:], labels[40:])
    moments.reset()
    assert moments.samples == 0
    with pytest.raises(cp.DataError, match="no samples were added"):
        moments.state_dict()
    moments.update(features, labels)
    expected = moments.compute()
    assert {name: value for name, value in loaded.compute().items() if isinstance(value, float)} == pytest.approx(
        {name: value for name, value in expected.items() if isinstance(value, float)}, rel=1e-10
    )


def test_training_accepts_the_path_of_a_configuration_and_pruning_a_single_sparsity(tmp_path: Path) -> None:
    config = tmp_path / "a.toml"
    config.write_text(
        '[data]\nname = "digits"\n[model]\nname = "mlp"\narguments = { hidden = [8] }\n[training]\nsteps = 1\n'
    )
    assert cp.train(str(config), tmp_path / "run", device="cpu").last_step == 1
    checkpoint = tmp_path / "run" / "checkpoints" / "step-000001.safetensors"
    assert checkpoint.exists()
    cp.prune(checkpoint, tmp_path / "pruned", 0.5)
    assert (tmp_path / "pruned" / "sparsity-0.500.safetensors").exists()
    with pytest.raises(cp.UsageError, match="at least two checkpoints"):
        cp.average(str(checkpoint), tmp_path / "soup.safetensors")


@pytest.mark.parametrize("value", [np.array(3.5), 3.0, True, "3", torch.tensor([3, 4]), 1, 10])
def test_an_argument_of_data_is_a_whole_number_within_its_bounds(value: object) -> None:
    assert whole_argument("context", np.int64(3), 2, 9) == 3
    with pytest.raises(UsageError, match="context: expected a whole number from 2 to 9, found"):
        whole_argument("context", value, 2, 9)
