"""Tests of the wheel and the sdist: their files, and that they work when installed, also in an empty environment."""

import os
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "ckpt_probe"


def build(kind: str, out: Path) -> Path:
    """Build a distribution with the build backend that pip calls, and return its file."""
    program = f"import hatchling.build as b; print(b.build_{kind}({str(out)!r}))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel of this source tree."""
    return build("wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist of this source tree."""
    return build("sdist", tmp_path_factory.mktemp("sdist"))


def files_of_the_package(root: Path) -> set[str]:
    files = (path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(root.parent).as_posix() for path in files}


def test_the_wheel_contains_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        about = next(name.partition("/")[0] for name in names if ".dist-info/" in name)
        metadata = message_from_string(archive.read(f"{about}/METADATA").decode())
    assert {name for name in names if not name.startswith(about)} == files_of_the_package(SOURCES)
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


def test_the_sdist_contains_the_files_that_tests_and_docs_need(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert files_of_the_package(SOURCES) <= names
    required = {"README.md", "LICENSE", "CHANGELOG.md", "Makefile", "mkdocs.yml", "pyproject.toml", "constraints.txt"}
    assert required <= names
    assert {"docs/index.md", "tests/conftest.py", "sample_configs/digits.toml"} <= names
    strays = {name for name in names if name.endswith((".pyc", ".part")) or "/." in f"/{name}"} - {".gitignore"}
    assert strays == set()


CONFIG = """\
data = { name = "digits" }
model = { name = "mlp", arguments = { hidden = [8] } }
training = { steps = 3 }
"""
COMMANDS = (
    "train tiny.toml -o run --device cpu",
    "extract run -o dumps --device cpu",
    "analyze dumps --json",
    "inspect run/checkpoints/step-000003.safetensors",
    "report dumps -o report.html",
)
"""Commands from training to the page; they need the data and the plotting library in the package."""
PROGRAM = """\
import sys
import ckpt_probe
from ckpt_probe.cli.app import run
print(ckpt_probe.__file__)
sys.exit(next((code for words in sys.argv[1:] if (code := run(words.split()))), 0))
"""


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel with pip, without dependencies, in an empty directory, and return the directory."""
    site = tmp_path_factory.mktemp("site")
    words = ["--quiet", "--no-deps", "--no-index", "--no-compile", "--disable-pip-version-check", "--target", str(site)]
    subprocess.run([sys.executable, "-m", "pip", "install", *words, str(wheel)], check=True, capture_output=True)
    return site


def test_the_installed_command_prints_its_help(installed: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    program = [sys.executable, installed / "bin" / "ckpt-probe", "--help"]
    done = subprocess.run(program, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "ckpt-probe demo" in done.stdout


@pytest.mark.slow
def test_the_installed_package_goes_from_training_to_a_page(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(CONFIG)
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *COMMANDS], env=environment, cwd=tmp_path, capture_output=True, text=True
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
    programs = tmp_path / "venv" / "bin"
    clean = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    install = [programs / "python", "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt"]
    subprocess.run([*install, request.getfixturevalue(kind)], env=clean, cwd=tmp_path, check=True)
    done = subprocess.run([programs / "ckpt-probe", "demo"], env=clean, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "What the numbers say" in done.stdout


@pytest.mark.slow
def test_the_lowest_versions_of_the_dependencies_go_from_training_to_a_page(wheel: Path, tmp_path: Path) -> None:
    requirements = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    # torch takes minutes to install, and newer versions of it work with all of these.
    lowest = [name.replace(">=", "==") for name in requirements if not name.startswith("torch")]
    site = tmp_path / "site"
    words = ["--quiet", "--no-compile", "--disable-pip-version-check", "--target", str(site)]
    done = subprocess.run([sys.executable, "-m", "pip", "install", *words, *lowest], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    words = [*words[:-2], "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([sys.executable, "-m", "pip", "install", *words, str(wheel)], check=True, capture_output=True)
    (tmp_path / "tiny.toml").write_text(CONFIG)
    environment = {**os.environ, "PYTHONPATH": str(site)}

    def result_of(*commands: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-c", PROGRAM, *commands]
        return subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True)

    done = result_of(*COMMANDS)
    assert done.returncode == 0, done.stderr
    for command, message in (
        ("extract run", "error: Missing option '-o' / '--out'"),
        ("analyze --outt x", "error: No such option '--outt'; did you mean --out?"),
        ("analyse dumps", "error: No such command 'analyse'; did you mean analyze"),
        ("inspect", "error: Missing argument"),
    ):
        done = result_of(command)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert done.stderr.startswith(message)
