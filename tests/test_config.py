"""Tests of configurations: every invalid value is reported with its line before anything runs."""

from pathlib import Path

import pytest

from ckpt_probe.config import load_config
from ckpt_probe.errors import DataError, UsageError

GOOD = """\
seed = 1
[data]
name = "digits"
[model]
name = "mlp"
[training]
epochs = 2
"""
SAMPLES = sorted((Path(__file__).parents[1] / "sample_configs").rglob("*.toml"))


def fault(tmp_path: Path, text: str) -> str:
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        load_config(path)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_every_sample_configuration_is_valid(path: Path) -> None:
    assert load_config(path).checkpoints is not None


def test_missing_settings_have_defaults_and_the_seed_can_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(GOOD)
    config = load_config(path)
    assert (config.seed, config.optimizer.name, config.training.batch_size) == (1, "sgd", 64)
    assert load_config(path, seed=9).seed == 9


def test_all_faults_are_reported_at_once_with_their_lines(tmp_path: Path) -> None:
    text = (
        GOOD.replace("epochs = 2", "epochs = -2\nbatchsize = 3") + "[optimizer]\nname = 'adam'\nlearning_rate = 'x'\n"
    )
    message = fault(tmp_path, text)
    assert "4 problems" in message
    assert "line 7, training.epochs" in message
    assert "line 8, training.batchsize: unknown key (did you mean batch_size?)" in message
    assert "line 10, optimizer.name" in message
    assert "line 11, optimizer.learning_rate" in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("epochs = 2", ""), "give either epochs or steps"),
        (("epochs = 2", "epochs = 2\nsteps = 4"), "give either epochs or steps"),
        (("epochs = 2", "steps = 2.5"), "training.steps"),
        (("epochs = 2", "epochs = inf"), "training.epochs"),
        (("epochs = 2", "epochs = 2\nbatch_size = 0"), "batch_size must be at least 1"),
        (("epochs = 2", 'epochs = 2\nbatch_size = "all"'), "training.batch_size"),
        (("seed = 1", "seed = -1"), "line 1, seed"),
        (("seed = 1", "sead = 1"), "did you mean seed"),
        (('[data]\nname = "digits"', ""), "data: missing"),
        (("epochs = 2", 'epochs = 2\n[optimizer]\nname = "adamw"\nmomentum = 0.9'), "momentum: not a setting of adamw"),
        (("epochs = 2", "epochs = 2\n[optimizer]\nbetas = [0.9, 0.99]"), "betas: not a setting of sgd"),
        (("epochs = 2", 'epochs = 2\n[optimizer]\nname = "adamw"\nbetas = [0.9]'), "betas must be two numbers"),
        (("epochs = 2", "epochs = 2\n[optimizer]\nnesterov = true\nmomentum = 0.0"), "nesterov needs momentum"),
        (("epochs = 2", "epochs = 2\n[schedule]\nfactor = 0.5"), "factor: not a setting of the schedule cosine"),
        (("epochs = 2", 'epochs = 2\n[schedule]\nname = "step"\nmilestones = [2.0]'), "milestones are fractions"),
        (("epochs = 2", "epochs = 2\n[checkpoints]\nper_epoch = 1\nlog_spaced = 4"), "give one schedule"),
        (("epochs = 2", "epochs = 2\n[checkpoints]\nsteps = [-1]"), "steps must not be negative"),
        (("epochs = 2", "epochs = 2\n[loss]\nlabel_smoothing = 1.0"), "loss.label_smoothing"),
        (("epochs = 2", "epochs = 2\n[start]\nkeep_step = true"), "start.from: missing"),
    ],
)
def test_impossible_values_are_refused(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    assert message in fault(tmp_path, GOOD.replace(*change))


def test_a_learning_rate_beyond_single_precision_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(GOOD + "[optimizer]\nname = 'adam'\nlearning_rate = 1e308\n")
    with pytest.raises(UsageError, match=r"optimizer\.learning_rate: input should be less than .*, found 1e\+308"):
        load_config(tmp_path / "c.toml")


def test_invalid_toml_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    assert "not valid TOML" in fault(tmp_path, "seed = ")
    with pytest.raises(UsageError, match=r"missing\.toml: cannot be read: No such file"):
        load_config(tmp_path / "missing.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not a text file"):
        load_config(tmp_path / "binary.toml")


def test_overrides_are_parsed_as_toml_and_otherwise_as_text(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(GOOD)
    overrides = ("loss.mir=0.01", "model.arguments.hidden=[8, 4]", "optimizer.name=adamw", "data.name = npz:a=b.npz")
    config = load_config(path, overrides=overrides)
    assert config.loss.mir == 0.01
    assert config.model.arguments == {"hidden": [8, 4]}
    assert (config.optimizer.name, config.data.name) == ("adamw", "npz:a=b.npz")
    assert config.training.epochs == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss.mir", "`overrides='loss.mir'`: expected key=value"),
        ("=3", "expected key=value"),
        ("loss..mir=3", "expected key=value"),
        ("seed.x=3", "seed is a value, not a section"),
        ("loss.mri=3", r"`overrides='loss.mri'`: unknown key \(did you mean mir\?\)"),
        ("loss.mir=-1", r"`overrides='loss.mir'`: input should be greater than or equal to 0, found -1"),
        ("loss.cma=nan", r"`overrides='loss.cma'`: .*found nan"),
        ("loss.hdr=inf", r"`overrides='loss.hdr'`: .*found inf"),
        ("loss.cma=much", r"`overrides='loss.cma'`: .*found 'much'"),
        ("start.part=head", r"`overrides='start.part"),
        ("checkpoints.evaluate=test", r"`overrides='checkpoints.evaluate"),
    ],
)
def test_an_invalid_override_is_named_in_the_message(tmp_path: Path, override: str, message: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(GOOD)
    with pytest.raises(UsageError, match=message) as error:
        load_config(path, overrides=[override])
    assert "\n" not in str(error.value)


def test_seed_in_braces_is_replaced_by_the_seed(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    start = '[start]\nfrom = "runs/seed-{seed}/step.safetensors"\n'
    path.write_text(GOOD.replace("[model]", 'arguments = { subset_seed = "{seed}", per_class = 5 }\n[model]') + start)
    for seed in (1, 7):
        config = load_config(path, seed=seed)
        assert config.data.arguments == {"subset_seed": seed, "per_class": 5}
        assert config.start is not None
        assert config.start.checkpoint == f"runs/seed-{seed}/step.safetensors"


def test_the_contrastive_task_takes_no_label_smoothing(tmp_path: Path) -> None:
    assert "label_smoothing: not a setting of the contrastive task" in fault(
        tmp_path, GOOD + "[loss]\ntask = 'contrastive'\nlabel_smoothing = 0.1\n"
    )


def test_thousands_of_problems_are_counted_and_the_first_are_described(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("[data]\n" + "".join(f"k{number} = 1\n" for number in range(3000)))
    with pytest.raises(UsageError, match=r"a\.toml: 3003 problems: .*line 2, data\.k0: unknown key.*; and 2983 more$"):
        load_config(tmp_path / "a.toml")
    (tmp_path / "b.toml").write_text("[data]\n" + "k = [" + "[]," * 300_000 + "]\n")
    with pytest.raises(DataError, match=r"b\.toml: unpacks to [\d,]+ bytes or more"):
        load_config(tmp_path / "b.toml")
