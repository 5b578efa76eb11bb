"""Tests of the public names, and checks that importing the package and printing help load no large library."""

import subprocess
import sys

import click
import pytest

import ckpt_probe

HEAVY = {"torch", "scipy", "h5py", "numpy", "rich", "pydantic", "safetensors"}


def loaded_after(code: str) -> set[str]:
    program = f"import sys\n{code}\nprint(' '.join(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_import_loads_nothing_heavy() -> None:
    assert loaded_after("import ckpt_probe").isdisjoint(HEAVY | {"click"})


@pytest.mark.parametrize("arguments", [["--help"], ["extract", "--help"], ["--version"], ["train", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    loaded = loaded_after(f"from ckpt_probe.cli.app import run\nassert run({arguments!r}) == 0")
    assert loaded.isdisjoint(HEAVY)


def test_every_public_name_can_be_loaded_and_has_a_docstring() -> None:
    for name in ckpt_probe.__all__:
        assert getattr(ckpt_probe, name).__doc__, name


def test_earlier_names_of_public_functions_stay() -> None:
    assert ckpt_probe.analyze_series is ckpt_probe.analyze_dump is ckpt_probe.analyze
    assert ckpt_probe.similarity.cka is ckpt_probe.cka
    assert ckpt_probe.similarity.CKA is ckpt_probe.CKA
    assert ckpt_probe.evaluate_plane is ckpt_probe.plane


def test_every_command_has_a_function_of_its_name() -> None:
    from ckpt_probe.cli.app import group

    commands = set(group.list_commands(click.Context(group))) - {"demo"}
    assert commands <= set(ckpt_probe.__all__)


def test_dir_lists_only_the_public_names() -> None:
    listed = {name for name in dir(ckpt_probe) if not (name.startswith("__") and name.endswith("__"))}
    assert listed == set(ckpt_probe.__all__)
    assert "__version__" in dir(ckpt_probe)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'entropy_of_everything'"):
        _ = ckpt_probe.entropy_of_everything
