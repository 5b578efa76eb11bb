"""The benchmark for a GPU, run small on the CPU, so that nothing of it is run for the first time where a GPU waits."""

import re

import pytest

pytest.importorskip("timm")


def test_a_dry_run_prints_every_part(capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.gpu import main

    assert main(["--tiny", "--device", "cpu", "--rounds", "1"]) == 0
    shown = capsys.readouterr().out
    for model in ("resnet10t", "vit_tiny_patch16_224"):
        for dtype in ("float32", "bfloat16"):
            assert re.search(rf"^extraction  timm:{model} {dtype}: bare .*/s  ours .*/s  ratio \d", shown, re.M)
    assert re.search(r"^moments     200 rows, D 16, C 5: XᵀX .* ratio \d", shown, re.M)
    assert all(f"  {loss}   clock: without" in shown for loss in ("cma", "mir", "hdr"))
