"""Tests of the command weights and its function: levels, parts, formats, following, invalid input, further commands."""

import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import ckpt_probe as cp
from ckpt_probe.checkpoints import save_checkpoint
from ckpt_probe.cli.app import run
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.progress import NullProgress
from ckpt_probe.trajectories.layout import WeightOptions, block_of
from ckpt_probe.trajectories.series import survey_weights

Series = Callable[..., Path]


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("layer1.0.conv1.weight", "layer1.0"),
        ("layer1.0.downsample.0.weight", "layer1.0"),
        ("model.layers.10.self_attn.q_proj.weight", "model.layers.10"),
        ("layers.0.blocks.1.attn.qkv.weight", "layers.0.blocks.1"),
        ("fc.weight", "fc"),
        ("0.weight", "0"),
        ("scale", "scale"),
    ],
)
def test_the_block_of_a_tensor_comes_from_its_name(name: str, block: str) -> None:
    assert block_of(name) == block


def test_each_checkpoint_has_one_record_with_every_part(states, series: Series) -> None:
    records = list(cp.weights(series(states[:4])))
    assert [record["step"] for record in records] == [0, 10, 20, 40]
    names = {"audit.turn_ratio", "motion.step", "motion.from_first", "motion.cosine", "spectrum.alpha",
             "spectrum.alpha_stderr", "spectrum.spikes", "spectrum.stable_rank", "classifier",
             "class.entropy_weights"}  # fmt: skip
    assert names <= set(records[1])
    only = list(cp.weights(series(states[:4]), only="spectra"))
    assert all(not name.startswith(("motion.", "audit.", "class")) for name in only[0])


def test_every_level_can_be_printed_in_every_format(states, series: Series, tmp_path: Path, capsys) -> None:
    path = str(series(states[:3]))
    assert run(["weights", path, "--by", "tensor", "--only", "spectra,motion", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["tensor"] for row in rows} >= {"0.weight", "1.bias", "5.weight"}
    assert next(row for row in rows if row["tensor"] == "0.bias")["missing"].startswith("motion.step")
    assert run(["weights", path, "--by", "block", "--csv", "-o", str(tmp_path / "w.parquet")]) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("checkpoint,step,block,")
    assert run(["weights", path]) == 0
    captured = capsys.readouterr()
    assert "turn" in captured.out
    assert captured.err.splitlines()[-1].startswith("audit: 3 checkpoints, nothing wrong; largest turn ratio")
    assert run(["weights", path, "--only", "motoin"]) == 2
    assert "--only: unknown part 'motoin'; did you mean motion?" in capsys.readouterr().err


def test_adapters_on_their_base_are_a_series_of_the_merged_weights(states, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "base.safetensors", states[0])
    random, changes = torch.Generator().manual_seed(0), []
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["0"], "bias": "none"}
    for step in (1, 2, 3):
        folder = tmp_path / "run" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        a, b = torch.randn(2, 64, generator=random), torch.randn(32, 2, generator=random)
        names = {"base_model.model.0.lora_A.weight": a, "base_model.model.0.lora_B.weight": b}
        save_checkpoint(folder / "adapter_model.safetensors", names)
        (folder / "adapter_config.json").write_text(json.dumps(settings))
        changes.append(3 * b.double() @ a.double())
    records = list(cp.weights(tmp_path / "run", only="audit,motion", base=tmp_path / "base.safetensors"))
    assert [record["step"] for record in records] == [1, 2, 3]
    for t in (1, 2):
        assert records[t]["motion.step"] == pytest.approx(float((changes[t] - changes[t - 1]).norm()), rel=1e-5)
    [*_, with_head] = cp.weights(tmp_path / "run", base=tmp_path / "base.safetensors")
    [of_base] = cp.weights(tmp_path / "base.safetensors")
    assert with_head["class.entropy_weights"] == pytest.approx(of_base["class.entropy_weights"], rel=1e-9)
    spectra = list(cp.weights(tmp_path / "run", only="spectra", by="tensor", base=tmp_path / "base.safetensors"))
    merged = states[0]["0.weight"].double() + changes[2]
    [last] = [record for record in spectra if (record["step"], record["tensor"]) == (3, "0.weight")]
    assert last["spectrum.norm"] == pytest.approx(float(torch.linalg.svdvals(merged)[0]), rel=1e-5)


def test_sharded_checkpoints_are_read_as_one_series(states, tmp_path: Path) -> None:
    for step in (0, 1, 2):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        names = sorted(states[step])
        parts = {"model-00001-of-00002.safetensors": names[:4], "model-00002-of-00002.safetensors": names[4:]}
        for file, inside in parts.items():
            save_checkpoint(folder / file, {name: states[step][name] for name in inside})
        index = {"weight_map": {name: file for file, inside in parts.items() for name in inside}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    records = list(cp.weights(tmp_path, only="motion,audit"))
    assert [record["step"] for record in records] == [0, 1, 2]
    assert records[2]["motion.step"] > 0


def test_checkpoints_of_another_network_have_a_reason_and_the_others_are_computed(states, series: Series) -> None:
    mixed = [dict(state) for state in states[:5]]
    mixed[2] = {"other.weight": torch.randn(40, 60)}
    records = list(cp.weights(series(mixed), only="motion,spectra"))
    assert records[2]["missing"].startswith("motion.*: its tensors are those of another network")
    assert records[2]["spectrum.alpha"] is not None
    assert records[3]["motion.step"] is not None


def _with(states, step: int, **tensors: torch.Tensor | None):
    """Return states in which one, or all if `step` is negative, have other tensors; None leaves a tensor out."""
    changed = [dict(state) for state in states[:5]]
    for state in changed if step < 0 else changed[step : step + 1]:
        for name, tensor in tensors.items():
            state[name.replace("_", ".")] = tensor
            if tensor is None:
                del state[name.replace("_", ".")]
    return changed


@pytest.mark.parametrize(
    ("step", "tensors", "texts"),
    [
        (2, {"3_weight": torch.full((24, 32), torch.nan)}, ["audit: step 20: NaN in 3.weight"]),
        (2, {"5_bias": None}, ["audit: 5.bias disappears at step 20"]),
        (2, {"new_weight": torch.ones(4, 4)}, ["audit: new.weight appears at step 20"]),
        (2, {"5_bias": torch.zeros(7)}, ["audit: 5.bias changes its shape at step 20: (10,) to (7,)"]),
        (
            -1,
            {"code_qweight": torch.zeros(4, 4, dtype=torch.int32), "ids": torch.arange(3)},
            ["quantised, not compared: 1 tensors, first code.qweight", "not compared: ids", "nothing wrong"],
        ),
    ],
)
def test_invalid_tensors_are_named_and_the_others_are_computed(
    states, series: Series, capsys, step: int, tensors, texts: list[str]
) -> None:
    path = str(series(_with(states, step, **tensors)))
    assert run(["weights", path, "--by", "tensor", "--only", "audit,motion,spectra", "--json"]) == 0
    captured = capsys.readouterr()
    assert all(text in captured.err for text in texts)
    rows = [json.loads(line) for line in captured.out.splitlines()]
    [last] = [row for row in rows if (row["tensor"], row["step"]) == ("0.weight", 60)]
    assert last["motion.step"] > 0
    assert last["spectrum.alpha"] is not None
    if step > 0 and (name := next(iter(tensors)).replace("_", ".")) != "3.weight":
        assert all(name in row["missing"] for row in rows if row["tensor"] == name)


def test_series_without_floating_point_parameters_are_an_error(series: Series, capsys) -> None:
    integers = [{"codes": torch.arange(20) + step} for step in range(3)]
    assert run(["weights", str(series(integers))]) == 1
    assert "no floating-point parameters" in (text := capsys.readouterr().err)
    assert "not floating-point numbers, not compared: codes" in text
    eight = [{"fc.weight": torch.randn(10, 24).to(torch.float8_e4m3fn)} for _ in range(3)]
    assert run(["weights", str(series(eight)), "--only", "audit,spectra", "--by", "tensor"]) == 1
    assert "quantised, not compared: 1 tensors, first fc.weight (F8_E4M3, without a scale)" in capsys.readouterr().err
    assert run(["weights", str(series(eight)), "--only", "classifier"]) == 1
    assert "fc.weight is float8_e4m3fn of shape (10, 24)" in capsys.readouterr().err


@pytest.mark.parametrize("only", ["audit,motion,spectra", "spectra", "classifier"])
@pytest.mark.parametrize("step", [0, 20])
def test_a_truncated_checkpoint_is_named_and_the_others_are_computed(
    states, series: Series, capsys, only: str, step: int
) -> None:
    path = series(states[:5], suffix=".safetensors")
    file = path / f"step-{step}.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert run(["weights", str(path), "--only", only, "--json", "-o", str(path.parent / "out.csv")]) == 1
    captured = capsys.readouterr()
    rows = [json.loads(line) for line in captured.out.splitlines()]
    assert [row["step"] for row in rows] == [s for s in (0, 10, 20, 40, 60) if s != step]
    assert captured.err.splitlines()[-1].startswith(f"error: {file}: truncated: shorter than its header says")
    assert len((path.parent / "out.csv").read_text().splitlines()) == 5
    if "audit" in only:
        assert f"audit: step {step} cannot be read" in captured.err
        assert rows[-1]["motion.step"] > 0
        assert run(["weights", str(path.parent), "--only", "motion", "--json"]) == 1


def test_a_tensor_that_differs_from_its_hash_leaves_out_the_spectra_of_one_checkpoint(
    states, series: Series, capsys
) -> None:
    path = series(states[:4], suffix=".safetensors")
    file = path / "step-20.safetensors"
    matrix = states[2]["3.weight"].numpy().tobytes()
    file.write_bytes(file.read_bytes().replace(matrix, matrix[:-4] + bytes([matrix[-4] ^ 1]) + matrix[-3:]))
    assert run(["weights", str(path), "--only", "audit,spectra", "--json"]) == 1
    captured = capsys.readouterr()
    assert [json.loads(line)["step"] for line in captured.out.splitlines()] == [0, 10, 40]
    assert "audit: 4 checkpoints, nothing wrong" in captured.err
    assert f"{file}: tensor" in captured.err.splitlines()[-1]
    zero = {name: tensor * (name != "5.weight") for name, tensor in states[1].items()}
    save_checkpoint(path / "step-10.safetensors", zero, overwrite=True)
    with pytest.raises(DataError, match=r"step-20.*: tensor.*; .*step-10.*: 5\.weight: 0 of 10 rows have a length"):
        list(cp.weights(path, only="spectra,classifier", classifier="5"))


def test_a_survey_has_records_spectra_of_the_ends_and_a_sentence_for_each_note_and_error(
    states, series: Series
) -> None:
    kept = [{**state, "codes": torch.arange(20)} for state in states[:4]]
    path = series(kept, suffix=".safetensors")
    file = path / "step-10.safetensors"
    matrix = states[1]["3.weight"].numpy().tobytes()
    file.write_bytes(file.read_bytes().replace(matrix, bytes(4) + matrix[4:]))
    survey = survey_weights(path, WeightOptions(), NullProgress())
    assert [record["step"] for record in survey.network] == [0, 20, 40]
    assert [record["classifier"] for record in survey.network] == ["5.weight"] * 3
    assert {record["block"] for record in survey.blocks} == {"0", "1", "3", "5"}
    assert [[name for name, _ in spectra] for spectra in survey.spectra.values()] == [["step-0", "step-40"]] * 3
    verdict, note, error = survey.sentences
    assert verdict.startswith("4 checkpoints, ")
    assert note == "Not floating-point numbers, not compared: codes."
    assert "step-10.safetensors: tensor '3.weight' is damaged" in error


def test_an_unreadable_run_does_not_stop_the_others(states, series: Series, tmp_path: Path, capsys) -> None:
    directory = series(states[:2])
    for name in ("a", "b", "c"):
        shutil.copytree(directory, tmp_path / "runs" / name)
    for file in (tmp_path / "runs" / "b").iterdir():
        file.write_bytes(file.read_bytes()[:50])
    assert run(["weights", str(tmp_path / "runs"), "--only", "motion", "--json"]) == 1
    captured = capsys.readouterr()
    assert [json.loads(line)["seed"] for line in captured.out.splitlines()] == ["a", "a", "c", "c"]
    assert f"{tmp_path}/runs/b" in captured.err.splitlines()[-1]


def test_changes_of_tensors_that_the_first_checkpoint_has_not(states, series: Series) -> None:
    other = _with(states, 2, new_weight=torch.randn(30, 24))
    records = cp.weights(series(_with(other, 3, **{"5_weight": torch.randn(9, 24)})), only="spectra", by="tensor")
    found = {(record["tensor"], record["step"]): record["missing"] for record in records}
    assert "spectrum.change_spikes: the first checkpoint has no such tensor" in found["new.weight", 20]
    assert "spectrum.change_spikes: the first checkpoint has the shape (10, 24)" in found["5.weight", 40]
    assert "spectrum.change_spikes: the first checkpoint" in found["3.weight", 0].split("; ")


def test_a_single_checkpoint_has_no_steps_and_a_missing_head_has_a_reason(states, series: Series) -> None:
    [record] = cp.weights(series(states[:1]))
    assert record["motion.norm"] > 0
    assert record["motion.step"] is None
    trunk = [{"layers.0.mlp.weight": state["3.weight"]} for state in states[:3]]
    records = list(cp.weights(series(trunk)))
    assert records[1]["motion.step"] > 0
    assert "no tensor looks like classifier weights" in records[1]["missing"]


def test_half_precision_weights_are_read_and_tied_ones_are_counted_once(states, series: Series) -> None:
    half = [{name: t.bfloat16() if t.is_floating_point() else t for name, t in state.items()} for state in states[:4]]
    tied = [{**state, "lm_head.weight": state["5.weight"]} for state in half]
    records = [list(cp.weights(series(part), only="motion")) for part in (half, tied)]
    assert [r["motion.norm"] for r in records[0]] == [r["motion.norm"] for r in records[1]]
    shared = [r for r in cp.weights(series(tied), only="motion", by="tensor") if r["tensor"] == "lm_head.weight"]
    assert all("tied to 5.weight" in record["missing"] for record in shared)
    assert all("tied to 5.weight" in record["missing"] for record in shared)


def test_equal_constant_tensors_are_not_tied(states, series: Series) -> None:
    constant = [{**state, "a.bias": torch.zeros(7), "b.bias": torch.zeros(7)} for state in states[:3]]
    records = list(cp.weights(series(constant), only="motion", by="tensor"))
    assert {record["tensor"] for record in records} >= {"a.bias", "b.bias"}
    assert not any("tied" in (record["missing"] or "") for record in records)


def test_weights_are_read_from_the_requested_part_of_a_file(states, series: Series, tmp_path: Path) -> None:
    nested = tmp_path / "nested"
    nested.mkdir()
    for step, state in enumerate(states[:3]):
        torch.save(
            {"student": state, "teacher": {name: 2 * t for name, t in state.items()}}, nested / f"step-{step}.pt"
        )
    records = [
        list(cp.weights(path, only="motion", state_key=key))
        for path, key in ((nested, "student"), (nested, "teacher"), (series(states[:3], steps=(0, 1, 2)), None))
    ]
    norms = [[record["motion.norm"] for record in part] for part in records]
    assert norms[0] == norms[2]
    assert norms[1] == pytest.approx([2 * norm for norm in norms[0]], rel=1e-6)
    student, alone = (
        list(cp.weights(path, classifier="5", orders=2, state_key=key))
        for path, key in ((nested, "student"), (tmp_path / "run", None))
    )
    assert student == alone
    assert {"class.entropy_weights", "renyi_2.class.entropy_weights"} <= set(alone[0])
    assert not any(name.startswith(("motion.", "audit.", "spectrum.")) for name in alone[0])
    every = list(cp.weights(tmp_path / "run", classifier="5", by="tensor"))
    assert {"motion.norm", "spectrum.stable_rank"} <= set(every[1])


def test_a_followed_run_has_records_of_new_checkpoints(states, series: Series, tmp_path: Path) -> None:
    path = series(states[:2])

    def write() -> None:
        time.sleep(0.3)
        series(states[2:4], (20, 40))

    writer = threading.Thread(target=write)
    writer.start()
    records = list(cp.weights(path, only="motion", follow=True, until=40, every=0.1, cache=True))
    writer.join()
    assert [record["step"] for record in records] == [0, 10, 20, 40]
    assert records[3]["motion.step"] > 0
    with pytest.raises(UsageError, match="needs the directory of a run"):
        list(cp.weights(path / "step-0.pt", follow=True))


def test_inspect_extract_and_compare_use_the_audit_and_the_records(states, series: Series, tmp_path, capsys) -> None:
    wrong = list(states)
    wrong[4] = states[9]
    path = series(wrong)
    assert run(["inspect", str(path)]) == 0
    verdict = "audit: step 60 holds the weights of step 200 (turn ratio "
    assert capsys.readouterr().out.splitlines()[-1].startswith(verdict)
    assert cp.inspect(path)["audit"]["findings"][0]["kind"] == "copy"
    run(["extract", str(path), "-o", str(tmp_path / "dumps"), "--model", "nothing", "--data", "digits"])
    assert capsys.readouterr().err.startswith(verdict)
    for group in ("a", "b"):
        (tmp_path / group).mkdir()
        for seed in range(3):
            out = tmp_path / group / f"seed-{seed}.jsonl"
            assert run(["weights", str(path), "--only", "motion", "-o", str(out), "--quiet"]) == 0
    capsys.readouterr()
    assert run(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--metric", "motion.norm", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[1])["difference"] == 0


def test_runs_in_a_directory_tree_have_group_and_seed(states, series: Series, tmp_path: Path, capsys) -> None:
    directory = series(states[:2])
    for seed_path in ("plain/seed-0", "plain/seed-1", "decay/seed-0"):
        (tmp_path / "runs" / seed_path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(directory, tmp_path / "runs" / seed_path)
    records = cp.weights(tmp_path / "runs", only="motion")
    assert [(r["group"], r["seed"], r["step"]) for r in records][::2] == [
        ("decay", "seed-0", 0),
        ("plain", "seed-0", 0),
        ("plain", "seed-1", 0),
    ]
    alone = cp.weights(directory, only="motion")
    assert [{**record, "group": "decay", "seed": "seed-0"} for record in alone] == list(records)[:2]
    assert "group" not in alone[0]
    assert run(["weights", f"a={tmp_path}/runs/*/seed-0", "--only", "motion", "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out.splitlines()[0])["seed"] == "decay/seed-0"
    assert "a/decay/seed-0: audit: 2 checkpoints, nothing wrong" in shown.err
    with pytest.raises(UsageError, match=r"`follow=True` needs one run; name one of 3, such as .*decay/seed-0"):
        cp.weights(tmp_path / "runs", follow=True)


def test_a_group_without_measurements_states_the_reasons_of_its_tensors(states, series: Series) -> None:
    kept = [{**state, "codes.weight": torch.arange(20), "tied.weight": state["3.weight"]} for state in states[:3]]
    for t, state in enumerate(kept):
        state |= {f"late{i}.weight": torch.ones(2, 2) for i in range(4) if t}
        state |= {"last.weight": torch.ones(3, 3)} if t == 1 else {}
    records = list(cp.weights(series(kept), only="audit,motion,spectra", by="block"))
    missing = {record["block"]: record["missing"] for record in records if record["step"] == 20}
    assert missing["late0"].startswith("audit.*, motion.*: late0.weight appears at step 10")
    assert missing["last"].startswith("audit.*, motion.*: last.weight appears at step 10")
    of_tensors = list(cp.weights(series(kept), only="audit,motion,spectra", by="tensor"))
    of_tied = [record["missing"] for record in of_tensors if record["tensor"] == "tied.weight"]
    assert len(of_tied) == 3
    assert all(missing.startswith("audit.*, motion.*: tied to 3.weight") for missing in of_tied)
    [network] = [record for record in cp.weights(series(kept), only="spectra") if record["step"] == 0]
    assert network["spectrum.stable_rank"] is not None


def test_reasons_of_several_spectra_name_how_many_matrices_have_them(series: Series) -> None:
    random = torch.Generator().manual_seed(0)
    layers = {f"{name}.weight": torch.randn(size, size, generator=random) for name, size in (("a", 4), ("b", 5))}
    [record] = cp.weights(series([layers]), only="spectra")
    reasons = [text for text in record["missing"].split("; ") if text.startswith("spectrum.alpha:")]
    assert len(reasons) == 2
    assert reasons[0].endswith(" (1 of 2 matrices, first a.weight)")
    assert reasons[1].endswith(" (1 of 2 matrices, first b.weight)")
    zeros = {name: torch.zeros_like(matrix) for name, matrix in layers.items()}
    [record] = cp.weights(series([zeros]), only="spectra")
    assert "spectrum.*: all entries are zero (2 of 2 matrices, first a.weight)" in record["missing"]
    [record] = cp.weights(series([{"a.bias": torch.ones(3)}]), only="spectra")
    assert record["missing"] == "spectrum.*: no matrix"
