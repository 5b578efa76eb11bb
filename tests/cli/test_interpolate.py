"""`interpolate` as a person gets it wrong: options that would do nothing are told, in one line."""

import pytest

from ckpt_probe.cli.app import run


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--alpha 0.5 --points 77 --keep-dumps --split nope", "it does not take --points, --keep-dumps, --split"),
        (
            "--alpha 0.5 --device tpu --csv --batchnorm recompute --resume",
            "it does not take --batchnorm, --device, --csv",
        ),
        ("--alpha 0.5 --align permutation", "it does not take --align"),
        ("--dtype float16 --threads 3", "--alpha, which writes a checkpoint, is needed for --dtype, --threads"),
        ("--curve-epochs 20", "--path bezier or polychain is needed for --curve-epochs"),
        ("--path slerp --midpoint m", "--path bezier or polychain is needed for --midpoint"),
        ("--path bezier --midpoint m --curve-epochs 3", "--midpoint, which needs no training, excludes --curve-epochs"),
        ("--align permutation --align-samples 1024", "--align activations is needed for --align-samples"),
        ("--batchnorm interpolate --batchnorm-samples 9", "--batchnorm-samples needs --batchnorm recompute"),
    ],
)
def test_options_that_do_nothing_are_refused(words: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["interpolate", "a", "b", "-o", "out", *words.split()]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert told in line
