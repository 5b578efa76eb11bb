"""Tests of statistics of tensors against numpy in double precision, for all dtypes, formats and numbers of threads."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ckpt_probe.checkpoints import open_checkpoint
from ckpt_probe.checkpoints.statistics import ENTRIES, Statistics, statistics_of

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
INTEGERS = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]


def statistics(path: Path, threads: int | None = None) -> dict[str, Statistics | None]:
    with open_checkpoint(path) as checkpoint:
        return dict(statistics_of(checkpoint, threads))


def check(result: Statistics | None, tensor: torch.Tensor) -> None:
    assert result is not None
    numbers = tensor.double().numpy().reshape(-1)
    finite = numbers[np.isfinite(numbers)].astype(np.longdouble)
    assert result.zeros == np.count_nonzero(numbers == 0) / max(1, numbers.size)
    assert result.nan == np.isnan(numbers).sum()
    assert result.inf == np.isinf(numbers).sum()
    if not finite.size:
        assert (result.norm, result.mean, result.spread) == (None, None, None)
        return
    assert result.norm == pytest.approx(float(np.sqrt((finite**2).sum())), rel=1e-12)
    assert result.mean == pytest.approx(float(finite.mean()), rel=1e-12, abs=1e-13 * result.norm)
    assert result.spread == pytest.approx(float(finite.std()), rel=1e-9, abs=1e-30)


@pytest.mark.parametrize("dtype", FLOATS + INTEGERS, ids=str)
def test_statistics_of_every_dtype_agree_with_numpy(tmp_path: Path, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(3, ENTRIES // 2 + 5, generator=generator, dtype=torch.float64) * 3
    tensors = {
        "large": numbers.to(dtype),
        "odd": numbers[0, :7].to(dtype).clone(),
        "zeros": torch.zeros(5).to(dtype),
        "empty": torch.zeros(0).to(dtype),
        "scalar": torch.tensor(1.0).to(dtype),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    torch.save(tensors, tmp_path / "a.pt")
    results = statistics(tmp_path / "a.safetensors")
    for name, tensor in tensors.items():
        check(results[name], tensor)
    assert statistics(tmp_path / "a.pt") == results


def test_values_that_are_not_finite_are_counted_and_left_out(tmp_path: Path) -> None:
    tensors = {
        "some": torch.tensor([1.0, math.nan, -math.inf, 3.0, -0.0, 0.0, math.inf, math.nan]),
        "none": torch.tensor([math.nan, math.inf]),
        "huge": torch.tensor([1e200, -1e200, 1e308], dtype=torch.float64),
        "tiny": torch.tensor([1e-30, 2e-30, -5e-40]),
        "late": torch.cat([torch.ones(ENTRIES + 3), torch.tensor([math.nan])]),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    for name, result in statistics(tmp_path / "a.safetensors").items():
        check(result, tensors[name])


def test_a_small_spread_around_a_large_mean_is_accurate(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "near": 1 + 1e-4 * torch.randn(3 * ENTRIES + 11, generator=generator),
        "nearer": 1e6 + torch.randn(ENTRIES, generator=generator, dtype=torch.float64) * 1e-4,
        "constant": torch.full((ENTRIES + 1,), 0.1),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    results = statistics(tmp_path / "a.safetensors")
    for name, tensor in tensors.items():
        check(results[name], tensor)
    assert results["constant"] is not None
    assert results["constant"].spread == 0


def test_the_number_of_threads_changes_no_bit(tmp_path: Path) -> None:
    save_file({"x": torch.randn(5 * ENTRIES + 1), "y": torch.randn(ENTRIES)}, tmp_path / "a.safetensors")
    assert (
        statistics(tmp_path / "a.safetensors", 1)
        == statistics(tmp_path / "a.safetensors", 2)
        == statistics(tmp_path / "a.safetensors", 5)
    )


def test_a_complex_tensor_has_no_statistics(tmp_path: Path) -> None:
    torch.save({"c": torch.ones(3, dtype=torch.complex64), "x": torch.ones(2)}, tmp_path / "a.pt")
    results = statistics(tmp_path / "a.pt")
    assert results["c"] is None
    check(results["x"], torch.ones(2))


MEASURED = """
import sys
from ckpt_probe.cli.app import run
code = run(["inspect", *sys.argv[1:]])
assert "torch" not in sys.modules and "scipy" not in sys.modules and "h5py" not in sys.modules
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
sys.exit(code)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_does_not_depend_on_the_size_of_tensors_and_torch_is_not_imported(tmp_path: Path) -> None:
    peaks = []
    for million in (1, 64):
        save_file({"x": torch.ones(million * 10**6, dtype=torch.bfloat16)}, tmp_path / f"{million}.safetensors")
        words = [str(tmp_path / f"{million}.safetensors"), "--statistics"]
        done = subprocess.run([sys.executable, "-c", MEASURED, *words], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout.splitlines()[-1]) / 1024)
    assert max(peaks) <= 120
    assert peaks[1] <= peaks[0] + 20
