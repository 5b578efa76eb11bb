"""Checks that every command block in README and docs runs, in order, in a new directory per document.

`docs/blocks.py` describes the marks of blocks: those that install something run in a new clone, with the slow tests;
those that take minutes run with the slow tests; those of a study run with `make studies`, and each of them has a
reduced form beside it. Parts of a page that need no files of each other run separately; commands with which several
pages begin run only once.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ckpt_probe.cli.app import VERBS
from ckpt_probe.config import StartSettings, TrainingConfig
from ckpt_probe.data import load_data
from ckpt_probe.moments.registry import METRICS

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
STUDIES = sorted((ROOT / "docs" / "studies").glob("*.md"))
SECONDS = 1200
"""Time limit of a block: ten times the time of the longest one."""

_spec = importlib.util.spec_from_file_location("docs_blocks", ROOT / "docs" / "blocks.py")
assert _spec is not None
assert _spec.loader is not None
pages = importlib.util.module_from_spec(_spec)
# The dataclass in the module needs it in sys.modules.
sys.modules["docs_blocks"] = pages
_spec.loader.exec_module(pages)
Block, blocks, FENCE = pages.Block, pages.blocks, pages.FENCE


def run(block: Block, directory: Path, commands: Any, seconds: int = SECONDS) -> None:
    environment = pages.environment()
    environment["PATH"] = f"{commands.path}{os.pathsep}{environment['PATH']}"
    # Dask's workers are forks of a process with the modules they need; new processes would import them again.
    environment["DASK_DISTRIBUTED__WORKER__MULTIPROCESSING_METHOD"] = "forkserver"
    words = commands.python(block.code) if block.language == "python" else pages.command(block)
    done = subprocess.run(words, cwd=directory, env=environment, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, (
        f"line {block.line}: exit {done.returncode}\n{block.code}\n{done.stdout}\n{done.stderr}"
    )


def copy_configurations(directory: Path) -> None:
    """Copy the sample configurations, with a smaller network for the digits, as its matrices take most of the time."""
    shutil.copytree(ROOT / "sample_configs", directory / "sample_configs")
    digits = directory / "sample_configs" / "digits.toml"
    text = digits.read_text(encoding="utf-8")
    assert "hidden = [128, 128]" in text
    digits.write_text(text.replace("hidden = [128, 128]", "hidden = [32, 32]"), encoding="utf-8")


def label(document: Path) -> str:
    return document.relative_to(ROOT).as_posix()


FRAMEWORK = re.compile(r"\b(transformers|timm|lightning|peft|torchvision)\b")
DEMO = "ckpt-probe demo"
TRAIN = "ckpt-probe train sample_configs/digits.toml -o runs/digits"
EXTRACT = "ckpt-probe extract runs/digits -o dumps/digits"
COMMON = {TRAIN: "runs/digits", EXTRACT: "dumps/digits", f"{EXTRACT} --split test": "dumps/digits"}
"""Commands with which several pages begin, and the directory that each writes."""


@pytest.fixture(scope="session")
def common(built_once: Callable[..., Path], commands: Any, demo: Path) -> dict[str, Path]:
    """Run the common commands once, and return the directory that each writes; read only."""

    def build(command: str, directory: Path) -> None:
        if command == TRAIN:
            copy_configurations(directory)
        else:
            shutil.copytree(outputs[TRAIN], directory / COMMON[TRAIN])
        run(Block("sh", command, 0), directory, commands)

    outputs = {DEMO: demo / "ckpt-probe-demo"}
    for number, (command, output) in enumerate(COMMON.items()):
        outputs[command] = built_once(f"common-{number}", partial(build, command)) / output
    return outputs


def parts(documents: list[Path]) -> list[Any]:
    """Return a parameter per part of a page, (page, number); the id has the number if the page has several parts."""
    numbers = {document: sorted({block.part for block in blocks(document)} | {0}) for document in documents}
    return [
        pytest.param(document, part, id=label(document) + (f"-{part}" if len(of_page) > 1 else ""))
        for document, of_page in numbers.items()
        for part in of_page
    ]


@pytest.mark.parametrize(("document", "part"), parts(DOCUMENTS))
def test_every_block_of_a_document_runs(
    document: Path, part: int, tmp_path: Path, common: dict[str, Path], request: pytest.FixtureRequest
) -> None:
    copy_configurations(tmp_path)
    shutil.copy(sorted(common[EXTRACT].glob("*.h5"))[-1], tmp_path / "dump.h5")
    page = [block for block in blocks(document) if block.language in {"sh", "python"} and block.mark is None]
    text = "".join(block.code for block in page)
    commands = request.getfixturevalue("framework_commands" if FRAMEWORK.search(text) else "commands")
    lines = set(text.splitlines())
    for command in lines & common.keys():
        shutil.copytree(common[command], tmp_path / COMMON.get(command, common[command].name))
    for block in page:
        if block.part == part:
            code = "".join(line for line in block.code.splitlines(keepends=True) if line.strip() not in common)
            run(replace(block, code=code), tmp_path, commands)


@pytest.mark.slow
@pytest.mark.parametrize(
    "document", [page for page in DOCUMENTS if any(b.mark == "slow" for b in blocks(page))], ids=label
)
def test_slow_blocks_of_a_page_run(document: Path, tmp_path: Path, commands: Any) -> None:
    shutil.copytree(ROOT / "sample_configs", tmp_path / "sample_configs")
    for block in blocks(document):
        if block.mark == "slow":
            run(block, tmp_path, commands, seconds=3600)


@pytest.mark.parametrize("document", STUDIES, ids=label)
def test_a_study_has_its_commands_and_a_reduced_form_of_them(document: Path) -> None:
    marks = [block.mark for block in blocks(document) if block.language == "sh"]
    assert document.name == "index.md" or ("study" in marks and {None, "slow"} & set(marks))


def test_every_block_is_parsed_and_has_a_known_language() -> None:
    by_page = {label(document): blocks(document) for document in DOCUMENTS}
    assert sum(block.language == "sh" for block in by_page["README.md"]) >= 4
    for name, of_document in by_page.items():
        fences = (ROOT / name).read_text(encoding="utf-8").count("\n```")
        assert fences == 2 * len(of_document), f"{name}: a fence that the test does not see"
        assert {block.language for block in of_document} <= {"sh", "python", "text", "toml"}, name


@pytest.mark.slow
def test_set_up_blocks_run_in_a_fresh_clone(tmp_path: Path) -> None:
    for number, block in enumerate(block for block in blocks(ROOT / "README.md") if block.mark == "set-up"):
        clone = tmp_path / f"clone-{number}"
        subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
        environment = {k: v for k, v in os.environ.items() if k not in {"VIRTUAL_ENV", "PYTHONPATH"}}
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block.code], cwd=clone, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{block.code}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"


@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS[1:], ids=label)
def test_set_up_blocks_of_other_pages_run_in_a_new_environment(document: Path, tmp_path: Path) -> None:
    for block in blocks(document):
        if block.mark == "set-up":
            subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
            path = f"{tmp_path / 'venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"
            subprocess.run(pages.command(block), cwd=tmp_path, env={**os.environ, "PATH": path}, check=True)
    for file in tmp_path.glob("*.npz"):
        data = load_data(f"npz:{file}")
        assert (data.classes, data.input_shape) == (10, (1, 28, 28))


def test_every_metric_is_on_the_metrics_page_and_every_command_on_the_commands_page() -> None:
    metrics = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert [metric.name for metric in METRICS if f"`{metric.name}`" not in metrics] == []
    commands = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert [verb for verb in VERBS if f"\n## {verb}\n" not in commands] == []


def test_links_between_pages_have_existing_targets() -> None:
    for document in DOCUMENTS:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", FENCE.sub("", document.read_text(encoding="utf-8"))):
            assert (document.parent / target).exists(), f"{label(document)}: {target}"


def test_the_configuration_on_the_commands_page_has_every_key() -> None:
    page = next(b.code for b in blocks(ROOT / "docs" / "commands.md") if b.language == "toml")
    configuration = tomllib.loads(page)
    TrainingConfig.model_validate(configuration)
    for section, field in TrainingConfig.model_fields.items():
        keys = getattr(field.annotation, "model_fields", None) or getattr(StartSettings, "model_fields", {})
        if isinstance(configuration[section], dict):
            missing = [key for key, inner in keys.items() if (inner.alias or key) not in page]
            assert missing == [], section
