"""Tests of the command `analyze`: edge cases, workers, the cache, stored moments, per-class rows and spectra."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ckpt_probe.analysis import analyze_features
from ckpt_probe.cli.app import run
from ckpt_probe.extraction import Block, Storage, store_writer
from ckpt_probe.moments.registry import FAMILIES, METRICS

Analyze = Callable[..., tuple[int, list[dict], str]]


def arrays(samples: int = 60, features: int = 5, classes: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = np.arange(samples) % classes
    weights = generator.normal(size=(classes, features))
    return {
        "test/features": weights[labels] + generator.normal(size=(samples, features)),
        "test/labels": labels,
        "classifier/weights": weights,
    }


def write(path: Path, datasets: dict[str, np.ndarray]) -> Path:
    with h5py.File(path, "w") as file:
        for name, value in datasets.items():
            file[name] = value
    return path


@pytest.fixture
def analyze(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Analyze:
    """Return a function that runs analyze --json in a new directory and returns exit code, records and errors."""
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> tuple[int, list[dict], str]:
        code = run(["analyze", "--json", *map(str, words)])
        output = capsys.readouterr()
        return code, [json.loads(line) for line in output.out.splitlines()], output.err.strip()

    return call


def changed(**changes: Callable[[np.ndarray], np.ndarray]) -> dict[str, np.ndarray]:
    datasets = arrays()
    names = {"features": "test/features", "labels": "test/labels", "weights": "classifier/weights"}
    for short, change in changes.items():
        datasets[names[short]] = change(datasets[names[short]])
    return datasets


def put(*indices: int, value: float = 0.0) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array[list(indices)] = value
        return array

    return change


@pytest.mark.parametrize(
    ("datasets", "message"),
    [
        (changed(features=put(4, 7, value=np.nan)), "test: features: 2 rows hold NaN or infinity, the first is row 4"),
        (changed(features=put(9, value=np.inf)), "test: features: 1 row holds NaN or infinity, the first is row 9"),
        (changed(features=put(*range(31))), "31 of 60 rows have zero length"),
        (changed(labels=put(8, value=3)), "labels: row 8 is 3, labels must be between 0 and 2"),
        (changed(labels=put(8, value=-1)), "labels: row 8 is -1, labels must be between 0 and 2"),
        (changed(weights=put(1, value=np.nan)), "classifier weights: 1 row holds NaN or infinity, the first is row 1"),
        (changed(labels=lambda y: y * 0, weights=lambda w: w[:1]), "at least two classes, found 1"),
    ],
)
def test_invalid_dumps_give_one_line_with_file_split_and_row(
    analyze: Analyze, tmp_path: Path, datasets: dict, message: str
) -> None:
    write(tmp_path / "bad.h5", datasets)
    code, records, errors = analyze("bad.h5")
    assert (code, records) == (1, [])
    assert errors.startswith("error: bad.h5: test: ")
    assert message in errors
    assert len(errors.splitlines()) == 1


def test_the_table_has_the_dumps_that_can_be_analyzed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (1, 2, 3):
        write(tmp_path / f"step-{step}.h5", changed(features=put(4, value=np.nan)) if step == 2 else arrays(60))
    out = tmp_path / "records.jsonl"
    assert run(["analyze", str(tmp_path), "--only", "nc1", "--csv", "-o", str(out)]) == 1
    assert [json.loads(line)["step"] for line in out.read_text().splitlines()] == [1, 3]
    captured = capsys.readouterr()
    assert [line.partition(",")[0] for line in captured.out.splitlines()] == ["checkpoint", "step-1", "step-3"]
    assert captured.err.splitlines()[-1].startswith(f"error: {tmp_path}/step-2.h5: test: features: 1 row holds NaN")


def uneven() -> dict[str, np.ndarray]:
    datasets = arrays(10_001, classes=2)
    datasets["test/labels"] = (np.arange(10_001) == 77).astype(int)
    return datasets


@pytest.mark.parametrize(
    ("datasets", "expected"),
    [
        (changed(features=put(3, 30)), {"samples_left_out": 2, "samples": 60}),
        (changed(weights=put(2)), {"samples_left_out": 20, "classes_left_out": 1}),
        (changed(labels=lambda y: y % 2), {"classes_left_out": 1, "classes": 3}),
        (changed(features=lambda z: np.repeat(z[:3], 20, axis=0)), {"samples": 60}),
        (changed(weights=lambda w: np.stack([w[0], 2 * w[0], w[1]])), {"samples_left_out": 0}),
        (changed(features=lambda z: z.astype(np.float16)), {"samples": 60}),
        (changed(features=lambda z: z[:, :1], weights=lambda w: w[:, :1]), {"features": 1, "sample.mir": None}),
        (arrays(1), {"samples": 1, "class.mir": None}),
        (arrays(40, classes=2), {"class.mir": None, "reference.entropy": 0.0}),
        (uneven(), {"samples": 10_001, "samples_left_out": 0}),
    ],
    ids=[
        "zero rows",
        "dead class",
        "absent class",
        "repeated",
        "low rank",
        "float16",
        "D = 1",
        "N = 1",
        "C = 2",
        "uneven",
    ],
)
def test_records_of_edge_cases_equal_those_of_analyze_features(
    analyze: Analyze, tmp_path: Path, datasets: dict, expected: dict
) -> None:
    write(tmp_path / "step-5.h5", datasets)
    code, records, _ = analyze("step-5.h5", "--set", "cache=false")
    assert code == 0
    plain = analyze_features(datasets["test/features"], datasets["test/labels"], datasets["classifier/weights"])
    for name, number in plain.items():
        expected_number = pytest.approx(number, rel=1e-10) if isinstance(number, float) else number
        assert records[0][name] == expected_number, name
    for name, value in expected.items():
        assert records[0][name] == value
        assert value is not None or name in records[0]["missing"]


def series(directory: Path, count: int = 3) -> None:
    directory.mkdir()
    for step in range(count):
        write(directory / f"step-{step}.h5", arrays(seed=step))


def test_workers_change_no_result(analyze: Analyze, tmp_path: Path) -> None:
    series(tmp_path / "dumps", 4)
    single = analyze("dumps", "--set", "cache=false", "--centred", "--renyi", "0.5,2")
    assert analyze("dumps", "--set", "cache=false", "--centred", "--renyi", "0.5,2", "--workers", 3) == single
    assert [record["step"] for record in single[1]] == [0, 1, 2, 3]


def test_an_error_in_a_worker_has_the_same_message(analyze: Analyze, tmp_path: Path) -> None:
    series(tmp_path / "dumps")
    write(tmp_path / "dumps" / "step-1.h5", changed(features=put(4, value=np.nan)))
    code, _, errors = analyze("dumps", "--workers", 2)
    assert code == 1
    assert errors == "error: dumps/step-1.h5: test: features: 1 row holds NaN or infinity, the first is row 4"


def test_a_second_analysis_computes_only_new_dumps(
    analyze: Analyze, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user_cache: Path
) -> None:
    series(tmp_path / "dumps")
    _, first, errors = analyze("dumps")
    assert errors == ""
    computed = []
    from ckpt_probe.analysis import dump as module

    original = module.compute_from_moments
    monkeypatch.setattr(
        module, "compute_from_moments", lambda *words, **named: computed.append(1) or original(*words, **named)
    )
    assert analyze("dumps") == (0, first, "3 of 3 dumps are from the cache; --no-cache recomputes them")
    write(tmp_path / "dumps" / "step-3.h5", arrays(seed=9))
    code, four, errors = analyze("dumps")
    assert (code, four[:3], len(computed)) == (0, first, 1)
    assert "3 of 4" in errors
    # A dump with other content is computed again even if its name, size and time are the same.
    path = tmp_path / "dumps" / "step-0.h5"
    times = path.stat()
    write(path, arrays(seed=11))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert analyze("dumps")[1][0]["sample.mir"] != first[0]["sample.mir"]
    assert len(computed) == 2
    # With other options, or if the cached files are invalid, all records are computed again.
    analyze("dumps", "--renyi", "2")
    assert len(computed) == 6
    for file in (user_cache / "records").iterdir():
        file.write_text("no JSON")
    assert analyze("dumps")[1][1:3] == first[1:]
    assert len(computed) == 10
    assert analyze("dumps", "--set", "cache=false")[2] == ""


def test_a_cache_that_cannot_be_used_is_reported(analyze: Analyze, tmp_path: Path, user_cache: Path) -> None:
    series(tmp_path / "dumps")
    user_cache.write_text("a file in place of the directory")
    code, records, message = analyze("dumps")
    assert (code, len(records)) == (0, 3)
    assert message.startswith(f"records are not cached: {user_cache}: cannot be written: ")


def test_a_cache_that_others_may_use_is_neither_read_nor_written(
    analyze: Analyze, tmp_path: Path, user_cache: Path
) -> None:
    series(tmp_path / "dumps")
    user_cache.mkdir(mode=0o755)
    code, records, message = analyze("dumps")
    assert (code, len(records)) == (0, 3)
    assert message == (
        f"records are not cached: {user_cache}: others may use this cache (mode 755); chmod 700 it, or name another "
        "directory by CKPT_PROBE_CACHE"
    )
    assert list(user_cache.iterdir()) == []


def test_the_directory_of_dumps_is_not_changed_and_its_hidden_files_are_not_read(
    analyze: Analyze, tmp_path: Path, user_cache: Path
) -> None:
    series(tmp_path / "dumps")
    (tmp_path / "target").mkdir()
    (tmp_path / "dumps" / ".ckpt-probe-cache").symlink_to(tmp_path / "target")
    assert analyze("dumps")[0] == 0
    assert not list((tmp_path / "target").iterdir())
    assert len(list((user_cache / "records").glob("*.json"))) == 3
    assert user_cache.stat().st_mode & 0o077 == 0


def write_stored(path: Path, store: str, datasets: dict[str, np.ndarray], **options) -> Path:
    import torch

    weights = torch.tensor(datasets["classifier/weights"])
    features, labels = torch.tensor(datasets["test/features"]), torch.tensor(datasets["test/labels"])
    parts = [slice(start, start + 7) for start in range(0, len(labels), 7)]
    blocks = [Block(features[part], labels[part], (features[part] @ weights.T).float()) for part in parts]
    with store_writer(path, None, Storage(store=store, feature_dtype="float64", **options), weights) as writer:
        writer.write_split("test", blocks, rows=len(labels))
    return path


@pytest.mark.parametrize("samples", [40, 900])
def test_moments_give_the_numbers_of_the_features(analyze: Analyze, tmp_path: Path, samples: int) -> None:
    datasets = arrays(samples, features=8, classes=4)
    for store in ("features", "moments", "both"):
        write_stored(tmp_path / f"{store}.h5", store, datasets)
    options = ("--centred", "--renyi", "2")
    (_, [features], _), (_, [moments], _), (_, [features_and_moments], _) = (
        analyze(f"{store}.h5", *options) for store in ("features", "moments", "both")
    )
    centred = {"centred.mir", "centred.hdr", "centred.effective_rank", "erank.difference"}
    without = {"checkpoint", "missing", "nc4.disagreement", "nearest_mean_accuracy", *centred}
    for name in features.keys() - without:
        expected = pytest.approx(features[name], rel=1e-9) if isinstance(features[name], float) else features[name]
        assert moments[name] == expected, name
    assert moments["missing"] == (
        "nc4.disagreement, nearest_mean_accuracy, centred.mir, centred.hdr, centred.effective_rank: needs the "
        "features, but only moments were stored (extract again with `store='both'` and `overwrite=True`)"
    )
    assert {**features_and_moments, "checkpoint": "features"} == features


def test_invalid_stored_moments_are_refused(analyze: Analyze, tmp_path: Path) -> None:
    datasets = arrays(900, features=8, classes=4)
    for name, tamper, message in (
        ("missing", lambda g: g.__delitem__("second"), "stored moments: missing one of rows, second, total"),
        ("shape", lambda g: (g.__delitem__("within"), g.create_dataset("within", data=np.eye(3))), "within has shape"),
        ("nan", lambda g: g["means"].__setitem__(0, np.nan), "means contains NaN or infinity"),
        ("claims", lambda g: g.create_dataset("rows", (10**6, 8), "f8", chunks=(1, 8)), "claims 64,000,000 bytes"),
        ("counts", lambda g: g["counts"].__setitem__(0, -5), "counts contains negative numbers"),
    ):
        path = write_stored(tmp_path / f"{name}.h5", "moments", datasets)
        with h5py.File(path, "a") as file:
            tamper(file["test/moments"])
            # Without the hash of the file, which would report the change first, as in files of other programs.
            del file.attrs["format"]
        code, _, errors = analyze(path.name)
        assert code == 1, errors
        assert errors.startswith(f"error: {name}.h5: test")
        assert message in errors


def test_per_class_rows_agree_with_their_definitions(analyze: Analyze, tmp_path: Path) -> None:
    datasets = arrays(90)
    write(tmp_path / "step-2.h5", datasets)
    code, rows, _ = analyze("step-2.h5", "--per-class")
    assert (code, [row["class"] for row in rows]) == (0, [0, 1, 2])
    features, labels = datasets["test/features"], datasets["test/labels"]
    means = np.stack([features[labels == c].mean(axis=0) for c in range(3)])
    nearest = np.linalg.norm(features[:, None] - means, axis=2).argmin(axis=1)
    for c, row in enumerate(rows):
        members = features[labels == c]
        unit = members / np.linalg.norm(members, axis=1, keepdims=True)
        values = np.linalg.eigvalsh(unit.T @ unit / len(members))
        counts = {int(k): int((nearest[labels == c] == k).sum()) for k in np.unique(nearest[labels == c])}
        assert (row["checkpoint"], row["step"], row["split"], row["samples"]) == ("step-2", 2, "test", 30)
        assert row["mean_norm"] == pytest.approx(np.linalg.norm(means[c]))
        assert row["variance"] == pytest.approx(((members - means[c]) ** 2).sum(axis=1).mean())
        assert row["within.entropy"] == pytest.approx(-(values * np.log(values)).sum())
        assert row["nearest.own"] == pytest.approx(counts.get(c, 0) / 30)
        assert dict(map(int, pair.split(":")) for pair in row["nearest.confusion"].split()) == counts


def test_spectra_are_the_eigenvalues_of_each_gram(analyze: Analyze, tmp_path: Path) -> None:
    datasets = arrays(50)
    write(tmp_path / "step-2.h5", datasets)
    code, [record], errors = analyze("step-2.h5", "--spectra", "out.npz")
    assert (code, errors) == (0, "out.npz: 9 arrays of eigenvalues")
    result = np.load(tmp_path / "out.npz")
    unit = datasets["test/features"] / np.linalg.norm(datasets["test/features"], axis=1, keepdims=True)
    expected = np.linalg.eigvalsh(unit.T @ unit / 50)
    assert np.allclose(np.sort(result["step-2/test/sample.features"]), expected)
    values = result["step-2/test/sample.joint"]
    assert -(values * np.log(values)).sum() == pytest.approx(record["sample.entropy_joint"])
    assert {f"step-2/test/within.{c}" for c in range(3)} < set(result.files)
    assert analyze("step-2.h5", "--spectra", "out.npz")[0] == 2
    (tmp_path / "step-2.h5").rename(tmp_path / os.fsdecode(b"\xe9.h5"))
    assert analyze(os.fsdecode(b"\xe9.h5"), "--spectra", "others.npz")[0] == 0
    with np.load(tmp_path / "others.npz") as others:
        assert all(name.startswith("\\udce9/") for name in others.files)


def test_a_dump_that_changes_while_it_is_read_is_refused(
    analyze: Analyze, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ckpt_probe.dumps import SplitView

    path = write(tmp_path / "step-2.h5", arrays(4000, features=64))
    original = SplitView.blocks

    def shrinking(view: SplitView, rows: int, *arguments: Any, **options: Any):
        for block in original(view, 500, *arguments, **options):
            yield block
            if path.stat().st_size > 10**6:
                os.truncate(path, 10**6)

    monkeypatch.setattr(SplitView, "blocks", shrinking)
    code, records, errors = analyze("step-2.h5", "--set", "cache=false")
    assert (code, records) == (1, [])
    assert errors == "error: step-2.h5: changed while it was read; try again when no program writes to it"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--renyi", "0"), "'--renyi': expected positive numbers such as 0.5,2, found '0'"),
        (("--renyi", "two"), "'--renyi': expected numbers such as 0.5,2, found 'two'"),
        (("--set", "memory=lots"), "--set memory=lots: expected a size such as 2GiB or 512MiB, found 'lots'"),
        (("--set", "memory=0"), "--set memory=0: expected a size"),
        (("--set", "memory=1000"), "--memory 1000: expected at least 65,536"),
        (("--sampling", "tolerance=0"), "tolerance: expected a positive number, found 0.0"),
        (("--sampling", "budget=-1"), "budget: expected a positive number of seconds, found -1.0"),
        (("--only", "nc,clas"), "'clas' is neither a metric nor a family of metrics; did you mean class"),
        (("--only", ","), "expected at least one family of metrics"),
        (("--set", "precision=float16"), "--set precision=float16: "),
        (("--set", "min_samples=0"), "--set min_samples=0: "),
        (("--workers", "0"), "--workers"),
    ],
)
def test_invalid_options_are_refused(analyze: Analyze, tmp_path: Path, words: tuple, message: str) -> None:
    write(tmp_path / "a.h5", arrays())
    code, _, errors = analyze("a.h5", *words)
    assert code == 2
    assert message in errors


def test_with_a_small_memory_the_stochastic_route_is_used_and_recorded(analyze: Analyze, tmp_path: Path) -> None:
    write(tmp_path / "a.h5", arrays(900, features=64, classes=12))
    _, [exact], _ = analyze("a.h5")
    code, [record], _ = analyze(
        "a.h5", "--set", "memory=300KiB", "--sampling", "tolerance=1e-2", "--sampling", "seed=3"
    )
    assert code == 0
    assert (exact["route"], record["route"], record["sample.seed"]) == ("dense-moments", "stochastic", 3)
    assert "over the memory budget" in record["route_reason"]
    assert abs(record["sample.mir"] - exact["sample.mir"]) <= 4 * record["sample.mir_computing_error"]
    assert record["within.entropy_mean"] == pytest.approx(exact["within.entropy_mean"], rel=1e-9)
    code, _, errors = analyze("a.h5", "--set", "memory=300KiB", "--sampling", "budget=1e-9", "--set", "cache=false")
    assert code == 1
    assert "the time budget of 1e-09 s ran out after" in errors


def test_only_the_requested_families_are_computed(analyze: Analyze, tmp_path: Path) -> None:
    datasets = arrays()
    write(tmp_path / "a.h5", datasets)
    full = analyze_features(datasets["test/features"], datasets["test/labels"], datasets["classifier/weights"])
    code, [record], _ = analyze("a.h5", "--only", "nc3, class")
    assert code == 0
    assert {"nc3.duality", "class.mir"} < set(record)
    assert not [name for name in record if name.startswith(("sample.", "nc1.", "nc4.", "within."))]
    assert "accuracy" not in record
    assert record["class.mir"] == pytest.approx(full["class.mir"], rel=1e-12)
    code, [single], _ = analyze("a.h5", "--only", "nc", "--set", "precision=float32")
    assert single["nc1.pinv"] == pytest.approx(full["nc1.pinv"], rel=1e-5)
    code, [few], _ = analyze("a.h5", "--set", "min_samples=21")
    assert (few["classes_present"], few["classes_left_out"], few["nc1.pinv"]) == (3, 3, None)


def test_the_list_of_metrics_needs_no_dump(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["analyze", "--list-metrics"]) == 0
    output = capsys.readouterr().out
    for family in FAMILIES:
        assert f"\n{family.name}: {family.meaning}" in output
        assert f"cost: {family.cost}" in output
    assert all(f"  {metric.name} " in output for metric in METRICS)
    assert "nc: short for nc1,nc2,nc3,nc4" in output
