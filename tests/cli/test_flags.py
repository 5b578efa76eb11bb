"""Checks that Python keywords in messages become flags of the command that runs."""

import ast
import re
from pathlib import Path

import click
import pytest

import ckpt_probe
from ckpt_probe.cli.app import group, run
from ckpt_probe.cli.flags import flags_for_keywords


@click.command()
@click.argument("checkpoints")
@click.option("-o", "--out")
@click.option("--batch-size", type=int)
@click.option("--overwrite", is_flag=True)
@click.option("--logits/--no-logits", "with_logits", default=True)
@click.option("--split", "splits", multiple=True)
@click.option("--data-argument", "data_arguments", multiple=True)
@click.option("--renyi", "orders")
@click.option("--set", "overrides", multiple=True)
def example(**_: object) -> None:
    """Do nothing."""


@pytest.mark.parametrize(
    ("keyword", "flag"),
    [
        ("`batch_size=0`", "--batch-size 0"),
        ("`batch_size=`", "--batch-size"),
        ("`batch_size`", "--batch-size"),
        ("`out='a.h5'`", "--out a.h5"),
        ('`out="a b"`', "--out a b"),
        ("`out=FILE`", "--out FILE"),
        ("`overwrite=True`", "--overwrite"),
        ("`overwrite`", "--overwrite"),
        ("`with_logits=True`", "--logits"),
        ("`with_logits=False`", "--no-logits"),
        ("`splits='test'`", "--split test"),
        ("`splits=['train', 'test']`", "--split train --split test"),
        ("`orders=(0.5, 2)`", "--renyi 0.5,2"),
        ("`data_arguments={'label': 'NAME', 'n': 3}`", "--data-argument label=NAME --data-argument n=3"),
        (
            "`data_arguments={'a': True, 'delimiter': '\\t'}`",
            "--data-argument a=true --data-argument 'delimiter=\"\\t\"'",
        ),
        ("`data_arguments={'sources': [{'name': 'x'}]}`", '--data-argument \'sources=[{"name": "x"}]\''),
        ("`overrides='loss.mir=1'`", "--set loss.mir=1"),
        ("`checkpoints`", "CHECKPOINTS"),
    ],
)
def test_keywords_become_flags(keyword: str, flag: str) -> None:
    assert flags_for_keywords(f"a.h5: {keyword}: wrong", example) == f"a.h5: {flag}: wrong"


@pytest.mark.parametrize(
    "text", ["`unknown=3`", "`pip install h5py`", "`overwrite=False`", "`out=None`", "`checkpoints=3`", "batch_size=0"]
)
def test_other_text_is_not_changed(text: str) -> None:
    assert flags_for_keywords(text, example) == text
    assert flags_for_keywords(text) == text


def test_advice_to_run_another_command_names_its_flags() -> None:
    message = "needs rows (extract again with `layer_store='both'` and `overwrite=True`); or `batch_size=1`"
    expected = "needs rows (extract again with --layer-store both and --overwrite); or --batch-size 1"
    assert flags_for_keywords(message, example) == expected


def test_errors_of_a_command_name_its_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "demo").mkdir()
    assert run(["demo", "-o", str(tmp_path / "demo")]) == 2
    assert "add --overwrite to replace it" in capsys.readouterr().err
    assert group.get_command(click.Context(group), "nothing") is None


def test_no_message_below_the_command_line_names_a_flag() -> None:
    package = Path(ckpt_probe.__file__).parent
    # These modules contain flags of other programs, commands for pages, and captions of printed tables.
    excepted = {"scheduling/backends.py", "reporting/table.py", "reporting/conditions.py"}
    for file in sorted(package.rglob("*.py")):
        name = file.relative_to(package).as_posix()
        if name.startswith("cli/") or name in excepted:
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        documentation = {
            id(statement.value)
            for statement in ast.walk(tree)
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
                assert not re.search(r"(?<![\w-])--[a-z]", node.value), f"{name}:{node.lineno}: {node.value}"
