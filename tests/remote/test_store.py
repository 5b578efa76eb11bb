"""The cache: what is fetched once is not fetched again, is whole and as it was, and stays within its limit."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ckpt_probe.checkpoints import open_checkpoint
from ckpt_probe.errors import DataError
from ckpt_probe.remote import store


@pytest.fixture
def file(web: Any) -> Path:
    torch.save({"w": torch.arange(20_000.0)}, web.folder / "a.pt")
    return web.folder / "a.pt"


def read(address: str) -> torch.Tensor:
    with open_checkpoint(address) as checkpoint:
        return checkpoint.read("w").clone()


def contents(cache: Path) -> list[Path]:
    return sorted(file for file in (cache / "files").glob("*/*"))


def bodies(web: Any) -> int:
    found = [line for line in web.asked if line.startswith("GET")]
    web.asked.clear()
    return len(found)


def test_a_file_is_fetched_once_and_is_kept_by_the_hash_of_its_content(web: Any, file: Path, cache: Path) -> None:
    import hashlib

    address = web.at("a.pt")
    assert torch.equal(read(address), torch.arange(20_000.0))
    [kept] = contents(cache)
    assert kept.name == hashlib.sha256(file.read_bytes()).hexdigest()
    assert kept.read_bytes() == file.read_bytes()
    assert bodies(web) == 2  # its first bytes, and all of it
    assert torch.equal(read(address), torch.arange(20_000.0))
    assert bodies(web) == 0


def test_a_file_that_has_changed_is_fetched_again(web: Any, file: Path, cache: Path) -> None:
    read(web.at("a.pt"))
    torch.save({"w": torch.zeros(5)}, file)
    assert torch.equal(read(web.at("a.pt")), torch.zeros(5))
    assert len(contents(cache)) == 2


def test_a_damaged_content_is_never_used(web: Any, file: Path, cache: Path) -> None:
    read(web.at("a.pt"))
    [kept] = contents(cache)
    data = bytearray(kept.read_bytes())
    data[len(data) // 2] ^= 1
    kept.write_bytes(bytes(data))
    assert torch.equal(read(web.at("a.pt")), torch.arange(20_000.0))
    assert kept.read_bytes() == file.read_bytes()


def test_a_file_without_a_validator_is_not_taken_from_the_cache(web: Any, file: Path) -> None:
    found = store.Found(web.at("a.pt"), file.stat().st_size, "")
    assert store._entry(found) is None


def test_the_least_recently_used_go_first(web: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        torch.save({"w": torch.full((20_000,), float(ord(name)))}, web.folder / f"{name}.pt")
    size = (web.folder / "a.pt").stat().st_size
    monkeypatch.setenv("CKPT_PROBE_CACHE_LIMIT", str(int(2.5 * size)))
    for number, name in enumerate("abac"):
        read(web.at(f"{name}.pt"))
        for kept in contents(cache):  # a clock that counts uses, whatever the file system's
            if kept.stat().st_mtime > 1000:
                os.utime(kept, (number, number))
    bodies(web)
    assert len(contents(cache)) == 2
    read(web.at("a.pt"))
    assert bodies(web) == 0
    read(web.at("b.pt"))
    assert bodies(web) == 1


def test_a_file_larger_than_the_limit_is_told(web: Any, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKPT_PROBE_CACHE_LIMIT", "1KiB")
    with pytest.raises(DataError, match=r"more than the cache may hold; raise CKPT_PROBE_CACHE_LIMIT \(1,024\)"):
        read(web.at("a.pt"))


def test_a_file_in_use_outlives_its_place_in_the_cache(web: Any, file: Path, cache: Path) -> None:
    with open_checkpoint(web.at("a.pt")) as checkpoint:
        for kept in contents(cache):
            kept.unlink()
        assert torch.equal(checkpoint.read("w"), torch.arange(20_000.0))


def test_processes_that_fetch_the_same_file_at_once_all_have_it(
    web: Any, file: Path, cache: Path, commands: Any
) -> None:
    program = textwrap.dedent("""
        import sys
        from ckpt_probe.checkpoints import open_checkpoint
        for _ in range(5):
            with open_checkpoint(sys.argv[1]) as checkpoint:
                print(float(checkpoint.read("w").sum()))
    """)
    started = [
        subprocess.Popen(commands.python(program, web.at("a.pt")), stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    told = [process.communicate(timeout=120)[0].split() for process in started]
    assert told == [[str(float(torch.arange(20_000.0).sum()))] * 5] * 2
    assert len(contents(cache)) == 1
    # Each has taken its own folder with it.
    assert [folder for folder in (cache / "open").iterdir() if not folder.name.endswith(f"-{os.getpid()}")] == []


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_uses_is_not(cache: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for number in (ended.pid, os.getppid()):
        (cache / "open" / f"{store.host_name()}-{number}" / "tree").mkdir(parents=True)
    store.own_folder()
    left = {int(folder.name.rpartition("-")[2]) for folder in (cache / "open").iterdir()}
    assert left == {os.getpid(), os.getppid()}


def test_a_cache_that_cannot_be_written_is_one_line(web: Any, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKPT_PROBE_CACHE", str(file))
    with pytest.raises(DataError, match=r"cannot be written: .*; name another directory by CKPT_PROBE_CACHE"):
        read(web.at("a.pt"))


def test_an_interrupted_fetch_leaves_nothing(
    web: Any, file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def halfway(found: store.Found) -> Iterator[bytes]:
        yield b"half"
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "blocks", halfway)
    with pytest.raises(KeyboardInterrupt):
        read(web.at("a.pt"))
    assert contents(cache) == []
    assert list(cache.rglob("part-*")) == []
