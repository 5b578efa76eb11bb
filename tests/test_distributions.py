"""What a wheel and an sdist hold, and that each runs the demo where nothing else is installed."""

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "ckpt_probe"


def build(kind: str, out: Path) -> Path:
    """The file of a distribution; the build backend is the one that pip would call."""
    program = f"import hatchling.build as b; print(b.build_{kind}({str(out)!r}))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree."""
    return build("wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist of this tree."""
    return build("sdist", tmp_path_factory.mktemp("sdist"))


def of_the_package(root: Path) -> set[str]:
    files = (path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(root.parent).as_posix() for path in files}


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        about = next(name.partition("/")[0] for name in names if ".dist-info/" in name)
        metadata = message_from_string(archive.read(f"{about}/METADATA").decode())
    assert {name for name in names if not name.startswith(about)} == of_the_package(SOURCES)
    assert "ckpt_probe/py.typed" in names
    assert any(name.endswith(".npz") for name in names)
    assert {name.removeprefix(f"{about}/") for name in names if name.startswith(about)} == {
        "METADATA",
        "RECORD",
        "WHEEL",
        "entry_points.txt",
        "licenses/LICENSE",
    }
    assert metadata["Requires-Python"] == ">=3.11"
    assert "Typing :: Typed" in metadata.get_all("Classifier", [])


def test_the_sdist_holds_what_its_tests_and_docs_need(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert of_the_package(SOURCES) <= names
    wanted = {"README.md", "LICENSE", "CHANGELOG.md", "Makefile", "mkdocs.yml", "pyproject.toml", "constraints.txt"}
    assert wanted <= names
    assert {"docs/index.md", "tests/conftest.py", "sample_configs/digits.toml"} <= names
    strays = {name for name in names if name.endswith((".pyc", ".part")) or "/." in f"/{name}"} - {".gitignore"}
    assert strays == set()


def test_the_wheel_runs_from_where_it_is_unpacked(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    reading = "from ckpt_probe.data import load_data; print(load_data('digits').classes)"
    program = f"import ckpt_probe; print(ckpt_probe.__file__); {reading}"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.split() == [str(tmp_path / "site" / "ckpt_probe" / "__init__.py"), "10"], done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_the_demo_runs_from_a_distribution_in_an_empty_environment(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    place = tmp_path / "venv" / "bin"
    clean = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    install = [place / "python", "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt"]
    subprocess.run([*install, request.getfixturevalue(kind)], env=clean, cwd=tmp_path, check=True)
    done = subprocess.run([place / "ckpt-probe", "demo"], env=clean, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "What the numbers say" in done.stdout
