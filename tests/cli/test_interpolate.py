"""Checks that options of `interpolate` without an effect are refused in one line."""

import pytest

from ckpt_probe.cli.app import run


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "--alpha 0.5 --points 77 --set keep_dumps=true --split nope",
            "it does not take --points, --split, --keep-dumps",
        ),
        (
            "--alpha 0.5 --device tpu --csv --set batchnorm=recompute",
            "it does not take --device, --csv, --batchnorm",
        ),
        ("--alpha 0.5 --align permutation", "it does not take --align"),
        ("--set dtype=float16", "--alpha, which writes a checkpoint, is needed for --dtype"),
        ("--set curve_epochs=20", "--path bezier or polychain is needed for --curve-epochs"),
        ("--path slerp --set midpoint=m", "--path bezier or polychain is needed for --midpoint"),
        (
            "--path bezier --set midpoint=m --set curve_epochs=3",
            "--set midpoint=FILE, which needs no training, excludes --curve-epochs",
        ),
        ("--align permutation --set align_samples=1024", "--align activations is needed for --align-samples"),
        (
            "--set batchnorm=interpolate --set batchnorm_samples=9",
            "--set batchnorm_samples=N needs --set batchnorm=recompute",
        ),
    ],
)
def test_options_without_an_effect_are_refused(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["interpolate", "a", "b", "-o", "out", *words.split()]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line
