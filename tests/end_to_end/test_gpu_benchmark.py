"""Checks that the benchmark for a GPU runs on the CPU with small sizes, so that it does not fail first on a GPU."""

import re

import pytest

pytest.importorskip("timm")


@pytest.mark.slow
def test_a_small_run_on_the_cpu_prints_every_part(capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.gpu import main

    assert main(["--tiny", "--device", "cpu", "--rounds", "1"]) == 0
    output = capsys.readouterr().out
    for model in ("resnet10t", "vit_tiny_patch16_224"):
        for dtype in ("float32", "bfloat16"):
            assert re.search(rf"^extraction  timm:{model} {dtype}: bare .*/s  ours .*/s  ratio \d", output, re.M)
    assert re.search(r"^moments     200 rows, D 16, C 5: XᵀX .* ratio \d", output, re.M)
    assert all(f"  {loss}   clock: without" in output for loss in ("cma", "mir", "hdr"))
