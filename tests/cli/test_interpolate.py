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
        ("--set dtype=float16", "--dtype needs --alpha, which writes a checkpoint"),
        ("--set curve_epochs=20", "--curve-epochs needs --path bezier or polychain"),
        ("--path slerp --set midpoint=m", "--midpoint needs --path bezier or polychain"),
        (
            "--path bezier --set midpoint=m --set curve_epochs=3",
            "--curve-epochs needs a midpoint to train, which --midpoint replaces",
        ),
        ("--align permutation --set align_samples=1024", "--align-samples needs --align activations"),
        (
            "--set batchnorm=interpolate --set batchnorm_samples=9",
            "--batchnorm-samples needs --batchnorm recompute",
        ),
    ],
)
def test_options_without_an_effect_are_refused(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["interpolate", "a", "b", "-o", "out", *words.split()]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line
