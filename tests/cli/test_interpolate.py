"""`interpolate` as a person gets it wrong: options that would do nothing are told, in one line."""

import pytest

from ckpt_probe.cli.app import run


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--alpha 0.5 --points 77 --keep-dumps --split nope", "it takes no --points, --keep-dumps, --split"),
        ("--alpha 0.5 --device tpu --csv --batchnorm recompute --resume", "it takes no --batchnorm, --device, --csv"),
        ("--alpha 0.5 --align permutation", "it takes no --align"),
        ("--dtype float16 --threads 3", "only --alpha, which writes a checkpoint, takes --dtype, --threads"),
        ("--curve-epochs 20", "only --path bezier and polychain take --curve-epochs"),
        ("--path slerp --midpoint m", "only --path bezier and polychain take --midpoint"),
        ("--path bezier --midpoint m --curve-epochs 3", "--midpoint, which needs no training, takes no --curve-epochs"),
        ("--align permutation --align-samples 1024", "only --align activations takes --align-samples"),
        ("--batchnorm interpolate --batchnorm-samples 9", "only --batchnorm recompute takes --batchnorm-samples"),
    ],
)
def test_options_that_do_nothing_are_refused(words: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["interpolate", "a", "b", "-o", "out", *words.split()]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert told in line
