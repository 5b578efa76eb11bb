"""Tests of claims on files: one holder at a time, takeover from a dead holder, and no files left behind."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ckpt_probe.scheduling import Busy, UnclaimedError, claimed, remove_abandoned

HELD = """
import sys
from pathlib import Path
from ckpt_probe.scheduling import claimed
with claimed(Path(sys.argv[1])) as claim:
    print(type(claim).__name__, flush=True)
    sys.stdin.readline()
"""


def names_in(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def test_a_claim_has_one_holder_and_leaves_no_file(tmp_path: Path) -> None:
    with claimed(tmp_path / "dumps" / "a.h5") as mine:
        assert mine is None
        with claimed(tmp_path / "dumps" / "a.h5") as second_claim, claimed(tmp_path / "dumps" / "b.h5") as third_claim:
            assert second_claim == Busy(f"process {os.getpid()} of {socket.gethostname()}")
            assert third_claim is None
        assert names_in(tmp_path / "dumps") == [".a.h5.claim-1"]
    assert names_in(tmp_path / "dumps") == []


def test_a_claim_ends_with_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="x"), claimed(tmp_path / "a.h5"):
        raise ValueError("x")
    assert names_in(tmp_path) == []


def test_a_claim_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with subprocess.Popen(
        [sys.executable, "-c", HELD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "NoneType\n"
        with claimed(path) as claim:
            assert claim == Busy(f"process {holder.pid} of {socket.gethostname()}")
        holder.kill()
        holder.wait()
        with claimed(path) as claim:
            assert claim is None
            assert names_in(tmp_path) == [".a.h5.claim-1", ".a.h5.claim-2"]
    assert names_in(tmp_path) == []


def claim_of_another_machine(path: Path) -> Path:
    """Write a claim of another machine that shares this directory."""
    file = path.with_name(f".{path.name}.claim-1")
    file.write_text(json.dumps({"host": "elsewhere", "process": 7, "token": "t"}))
    return file


def test_a_claim_of_another_machine_is_stale_after_a_long_time_without_a_beat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr("ckpt_probe.scheduling.claims.monotonic", lambda: now[0])
    path = tmp_path / "a.h5"
    file = claim_of_another_machine(path)
    for beat in range(3):
        with claimed(path) as claim:
            assert claim == Busy("process 7 of elsewhere")
        # The other machine's clock may differ, so that only changes of the file's time count.
        os.utime(file, (beat, beat))
        now[0] += 59
    with claimed(path) as claim:
        assert isinstance(claim, Busy)
    now[0] += 60
    with claimed(path) as claim:
        assert claim is None
    assert names_in(tmp_path) == []


def test_a_damaged_claim_is_valid_until_it_is_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("ckpt_probe.scheduling.claims.monotonic", lambda: now[0])
    path = tmp_path / "a.h5"
    path.with_name(".a.h5.claim-1").write_bytes(b"\xff{")
    with claimed(path) as claim:
        assert claim == Busy("another process")
    now[0] += 61
    with claimed(path) as claim:
        assert claim is None


def test_a_beat_updates_the_time_of_a_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckpt_probe.scheduling.claims.BEAT_SECONDS", 0.01)
    with claimed(tmp_path / "a.h5"):
        file = tmp_path / ".a.h5.claim-1"
        os.utime(file, (0, 0))
        end = time.monotonic() + 10
        while file.stat().st_mtime == 0 and time.monotonic() < end:
            time.sleep(0.01)
        assert file.stat().st_mtime > 0


def test_a_claim_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UnclaimedError, match=r"file/a\.h5: cannot be written"), claimed(tmp_path / "file" / "a.h5"):
        pass


def test_only_claims_of_dead_processes_on_existing_files_are_removed(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = socket.gethostname()
    claims = {
        "done.claim-1": (host, dead.pid),
        "done.claim-2": (host, dead.pid),
        "missing.claim-1": (host, dead.pid),
        "mine.claim-1": (host, os.getpid()),
        "theirs.claim-1": ("elsewhere", dead.pid),
    }
    for name, (host_of_claim, process) in claims.items():
        (tmp_path / f".{name}").write_text(json.dumps({"host": host_of_claim, "process": process, "token": "t"}))
    (tmp_path / ".torn.claim-1").write_text("{")
    for name in ("done", "mine", "theirs", "torn"):
        (tmp_path / name).touch()
    remove_abandoned(tmp_path)
    remaining = {file.name for file in tmp_path.iterdir() if ".claim-" in file.name}
    assert remaining == {".missing.claim-1", ".mine.claim-1", ".theirs.claim-1", ".torn.claim-1"}
    remove_abandoned(tmp_path / "nowhere")


def test_a_claim_with_the_largest_number_is_taken_over_repeatedly(tmp_path: Path) -> None:
    claim_of_ended_process = json.dumps({"host": socket.gethostname(), "process": 2**22 + 1, "token": "t"})
    (tmp_path / f".x.h5.claim-{10**9 - 1}").write_text(claim_of_ended_process)
    for _ in range(2):
        with claimed(tmp_path / "x.h5") as claim:
            assert claim is None
    assert list(tmp_path.iterdir()) == []


def test_a_process_of_another_container_with_the_same_host_name_counts_as_alive(tmp_path: Path) -> None:
    holder = {"host": socket.gethostname(), "process": 2**22 + 1, "token": "t", "machine": "f" * 16}
    (tmp_path / ".x.h5.claim-1").write_text(json.dumps(holder))
    with claimed(tmp_path / "x.h5") as claim:
        assert claim == Busy(f"process {2**22 + 1} of {socket.gethostname()}")


def test_a_named_pipe_as_a_claim_is_taken_over_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".a.h5.claim-1")
    (tmp_path / "a.h5").write_bytes(b"")
    remove_abandoned(tmp_path)
    with claimed(tmp_path / "a.h5") as claim:
        assert not isinstance(claim, Busy)
