"""Tests of the cache: a file is downloaded once for each of its versions, and is complete or absent."""

import subprocess
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from ckpt_probe.errors import DataError
from ckpt_probe.opening import open_checkpoint
from ckpt_probe.remote import paths as remote_paths
from ckpt_probe.remote import resolve
from ckpt_probe.remote.hosts import Entry


@pytest.fixture
def file(web: Any) -> Path:
    torch.save({"w": torch.arange(20_000.0)}, web.folder / "a.pt")
    return web.folder / "a.pt"


def read(address: str) -> torch.Tensor:
    with open_checkpoint(address) as checkpoint:
        return checkpoint.read("w").clone()


def contents(cache: Path) -> list[Path]:
    return sorted(file for file in (cache / "files").rglob("*") if file.is_file())


def bodies(web: Any) -> int:
    """Return how many files or parts the server has sent since the last call."""
    downloads = [line for line in web.requests if line.startswith("GET")]
    web.requests.clear()
    return len(downloads)


def test_a_file_is_downloaded_once_under_its_own_name(web: Any, file: Path, cache: Path) -> None:
    address = web.at("a.pt")
    assert torch.equal(read(address), torch.arange(20_000.0))
    [copy] = contents(cache)
    assert copy.name == "a.pt"
    assert copy.read_bytes() == file.read_bytes()
    assert bodies(web) == 2  # One download is its first bytes, the other the complete file.
    assert torch.equal(read(address), torch.arange(20_000.0))
    assert bodies(web) == 0


def test_a_file_that_has_changed_is_downloaded_again(web: Any, file: Path, cache: Path) -> None:
    read(web.at("a.pt"))
    torch.save({"w": torch.zeros(5)}, file)
    assert torch.equal(read(web.at("a.pt")), torch.zeros(5))
    assert len(contents(cache)) == 2


def test_an_incomplete_copy_is_never_used(web: Any, file: Path, cache: Path) -> None:
    read(web.at("a.pt"))
    [copy] = contents(cache)
    copy.write_bytes(copy.read_bytes()[:-1])
    assert torch.equal(read(web.at("a.pt")), torch.arange(20_000.0))
    assert copy.read_bytes() == file.read_bytes()


def test_a_file_without_a_validator_is_not_read_from_the_cache(web: Any, file: Path) -> None:
    address = web.at("a.pt")
    read(address)
    entry = Entry(address, file.stat().st_size)
    copy = remote_paths._copy_path(entry)
    copy.parent.mkdir(parents=True)
    copy.write_bytes(file.read_bytes())
    assert remote_paths.cached_copy(entry) is None


def test_a_file_in_use_outlives_its_copy_in_the_cache(web: Any, file: Path, cache: Path) -> None:
    with open_checkpoint(web.at("a.pt")) as checkpoint:
        assert torch.equal(checkpoint.read("w")[:5], torch.arange(5.0))
        for copy in contents(cache):
            copy.unlink()
        assert torch.equal(checkpoint.read("w"), torch.arange(20_000.0))


def test_concurrent_downloads_of_a_file_give_every_process_the_complete_file(
    web: Any, file: Path, cache: Path, commands: Any
) -> None:
    program = textwrap.dedent("""
        import sys
        from ckpt_probe.opening import open_checkpoint
        for _ in range(5):
            with open_checkpoint(sys.argv[1]) as checkpoint:
                print(float(checkpoint.read("w").sum()))
    """)
    started = [
        subprocess.Popen(commands.python(program, web.at("a.pt")), stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0].split() for process in started]
    assert outputs == [[str(float(torch.arange(20_000.0).sum()))] * 5] * 2
    assert len(contents(cache)) == 1


def test_a_cache_that_cannot_be_written_is_reported(web: Any, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKPT_PROBE_CACHE", str(file))
    with pytest.raises(DataError, match=r"cannot be written: .*, or name another directory by CKPT_PROBE_CACHE"):
        read(web.at("a.pt"))


def test_an_interrupted_download_leaves_no_file(
    web: Any, file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def halfway(_entries: list[Entry], files: list[Path]) -> None:
        files[0].write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(remote_paths, "_download", halfway)
    with pytest.raises(KeyboardInterrupt):
        read(web.at("a.pt"))
    assert contents(cache) == []


def test_a_directory_is_downloaded_once_for_each_version_of_its_files(web: Any, cache: Path) -> None:
    for name in ("a/x.txt", "a/b/y.txt"):
        (web.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (web.folder / name).write_text(name)
    copy = Path(resolve(web.at("a")).__fspath__())
    assert copy.name == "a"
    assert sorted(file.relative_to(copy).as_posix() for file in copy.rglob("*.txt")) == ["b/y.txt", "x.txt"]
    web.requests.clear()
    assert Path(resolve(web.at("a")).__fspath__()) == copy
    assert not [line for line in web.requests if line.startswith("GET") and line.endswith(".txt")]
    (web.folder / "a/x.txt").write_text("new")
    second_version = Path(resolve(web.at("a")).__fspath__())
    assert (copy / "x.txt").read_text() == "a/x.txt"
    assert (second_version / "x.txt").read_text() == "new"


def test_a_cache_that_other_users_may_write_is_refused(web: Any, file: Path, cache: Path) -> None:
    cache.mkdir(mode=0o755)
    cache.chmod(0o777)
    with pytest.raises(DataError, match=r"others may use this cache \(mode 777\); chmod 700 it"):
        read(web.at("a.pt"))
    assert list(cache.iterdir()) == []
