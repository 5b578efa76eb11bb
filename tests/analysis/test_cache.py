"""The key of a kept record: every module that a number may depend on, every library that computes, every option."""

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


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copy") / "ckpt_probe"
    return Path(shutil.copytree(PACKAGE, folder, ignore=shutil.ignore_patterns("__pycache__", "static")))


def test_a_change_of_any_module_but_those_that_show_is_another_key(copied: Path) -> None:
    before = files.code_hash(copied)
    assert before == files.code_hash()
    unchanged = []
    for module in MODULES:
        with (copied / module).open("a") as file:
            file.write("# changed\n")
        after = files.code_hash(copied)
        if after == before:
            unchanged.append(module)
        before = after
    assert {module.parts[0] for module in unchanged} == {"cli", "reporting"}
    assert not any(module.parts[0] in {"cli", "reporting"} for module in set(MODULES) - set(unchanged))


def test_modules_that_compute_import_none_that_show() -> None:
    """As they may import neither `cli` nor `report`, no number depends on these."""
    for module in MODULES:
        if module.parts[0] not in {"cli", "reporting", "integrations", "__init__.py", "__main__.py"}:
            text = (PACKAGE / module).read_text()
            assert "ckpt_probe.reporting" not in text, module
            assert "from ckpt_probe.cli" not in text, module


def test_a_module_that_comes_goes_or_is_renamed_is_another_key(copied: Path) -> None:
    keys = {files.code_hash(copied)}
    module = copied / "moments" / "new.py"
    module.write_text("x = 1\n")
    keys.add(files.code_hash(copied))
    module.rename(module.with_name("newer.py"))
    keys.add(files.code_hash(copied))
    assert len(keys) == 3


def test_code_and_libraries_are_in_the_key_with_the_options() -> None:
    found = cache.Cache.of(Settings(), None)
    assert found is not None
    asked = json.loads(found.key)
    assert asked["code"] == files.code_hash()
    assert {name: asked[name] for name in cache.LIBRARIES} == {name: version(name) for name in cache.LIBRARIES}
    assert {"h5py", "numpy", "scipy", "torch"} <= set(cache.LIBRARIES)
    assert cache.Cache.of(Settings(centred=True), None) != found
    assert cache.Cache.of(Settings(), ["test"]) != found
