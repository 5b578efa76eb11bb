"""Tests of the key of a cached record: it contains the code, the versions of libraries, and the options."""

import json
import shutil
from importlib.metadata import version
from pathlib import Path

import pytest

import ckpt_probe
from ckpt_probe import files
from ckpt_probe.analysis import Settings, cache

PACKAGE = Path(ckpt_probe.__file__).parent
MODULES = sorted(file.relative_to(PACKAGE) for file in PACKAGE.rglob("*.py"))
OF_EACH_DIRECTORY = sorted({module.parent: module for module in MODULES}.values())


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copy") / "ckpt_probe"
    return Path(shutil.copytree(PACKAGE, folder, ignore=shutil.ignore_patterns("__pycache__", "static")))


def test_a_change_of_a_module_outside_cli_and_reporting_changes_the_key(copied: Path) -> None:
    before = files.code_hash(copied)
    assert before == files.code_hash()
    unchanged = []
    for module in OF_EACH_DIRECTORY:
        with (copied / module).open("a") as file:
            file.write("# changed\n")
        after = files.code_hash(copied)
        if after == before:
            unchanged.append(module)
        before = after
    assert {module.parts[0] for module in unchanged} == {"cli", "reporting"}
    assert not any(module.parts[0] in {"cli", "reporting"} for module in set(OF_EACH_DIRECTORY) - set(unchanged))


def test_no_module_that_computes_imports_cli_or_reporting() -> None:
    """Modules that compute must import neither `cli` nor `reporting`, so that no number depends on these."""
    for module in MODULES:
        if module.parts[0] not in {"cli", "reporting", "integrations", "__init__.py", "__main__.py"}:
            text = (PACKAGE / module).read_text()
            assert "ckpt_probe.reporting" not in text, module
            assert "from ckpt_probe.cli" not in text, module


def test_a_new_or_renamed_module_changes_the_key(copied: Path) -> None:
    keys = {files.code_hash(copied)}
    module = copied / "moments" / "new.py"
    module.write_text("x = 1\n")
    keys.add(files.code_hash(copied))
    module.rename(module.with_name("newer.py"))
    keys.add(files.code_hash(copied))
    assert len(keys) == 3


def test_the_key_contains_code_libraries_and_options() -> None:
    current = cache.cache_key(Settings(), None)
    assert current is not None
    key = json.loads(current)
    assert key["code"] == files.code_hash()
    assert {name: key[name] for name in cache.LIBRARIES} == {name: version(name) for name in cache.LIBRARIES}
    assert {"h5py", "numpy", "scipy", "torch"} <= set(cache.LIBRARIES)
    assert cache.cache_key(Settings(centred=True), None) != current
    assert cache.cache_key(Settings(), ["test"]) != current
