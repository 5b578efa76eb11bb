"""What a wheel and an sdist hold, that the wheel runs once installed, and each in an environment that was empty."""

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


CONFIG = """\
data = { name = "digits" }
model = { name = "mlp", arguments = { hidden = [8] } }
training = { steps = 3 }
"""
ROAD = (
    "train tiny.toml -o run --device cpu",
    "extract run -o dumps --device cpu",
    "analyze dumps --json",
    "inspect run/checkpoints/step-000003.safetensors",
    "report dumps -o report.html",
)
"""From checkpoints to the page, with everything that the package brings: data, and what the page is drawn by."""
PROGRAM = """\
import sys
import ckpt_probe
from ckpt_probe.cli.app import run
print(ckpt_probe.__file__)
sys.exit(next((code for words in sys.argv[1:] if (code := run(words.split()))), 0))
"""


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as pip installs it, by itself, in a directory that was empty."""
    site = tmp_path_factory.mktemp("site")
    words = ["--quiet", "--no-deps", "--no-index", "--no-compile", "--disable-pip-version-check", "--target", str(site)]
    subprocess.run([sys.executable, "-m", "pip", "install", *words, str(wheel)], check=True, capture_output=True)
    return site


def test_the_installed_command_tells_of_itself(installed: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    program = [sys.executable, installed / "bin" / "ckpt-probe", "--help"]
    done = subprocess.run(program, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "ckpt-probe demo" in done.stdout


def test_the_installed_package_goes_from_training_to_a_page(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(CONFIG)
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *ROAD], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == str(installed / "ckpt_probe" / "__init__.py")
    assert "report.html: " in done.stderr
    assert (tmp_path / "report.html").stat().st_size > 500_000


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
