"""Claims on files: one holder at a time, taken over where he is dead, and nothing left."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ckpt_probe.scheduling import Busy, Claim, UnclaimedError, claimed, remove_abandoned

HELD = """
import sys
from pathlib import Path
from ckpt_probe.scheduling import claimed
with claimed(Path(sys.argv[1])) as claim:
    print(type(claim).__name__, flush=True)
    sys.stdin.readline()
"""


def hidden(place: Path) -> list[str]:
    return sorted(entry.name for entry in place.iterdir())


def test_one_holder_at_a_time_and_nothing_is_left(tmp_path: Path) -> None:
    with claimed(tmp_path / "dumps" / "a.h5") as mine:
        assert isinstance(mine, Claim)
        with claimed(tmp_path / "dumps" / "a.h5") as other, claimed(tmp_path / "dumps" / "b.h5") as another:
            assert other == Busy(f"process {os.getpid()} of {socket.gethostname()}")
            assert isinstance(another, Claim)
        assert hidden(tmp_path / "dumps") == [".a.h5.claim-1"]
    assert hidden(tmp_path / "dumps") == []


def test_a_claim_ends_with_an_error_too(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="x"), claimed(tmp_path / "a.h5"):
        raise ValueError("x")
    assert hidden(tmp_path) == []


def test_another_process_holds_it_until_it_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with subprocess.Popen(
        [sys.executable, "-c", HELD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "Claim\n"
        with claimed(path) as found:
            assert found == Busy(f"process {holder.pid} of {socket.gethostname()}")
        holder.kill()
        holder.wait()
        with claimed(path) as found:
            assert isinstance(found, Claim)
            assert found.file.name == ".a.h5.claim-2"
    assert hidden(tmp_path) == []


def elsewhere(path: Path) -> Path:
    """A claim of a machine that shares this directory."""
    file = path.with_name(f".{path.name}.claim-1")
    file.write_text(json.dumps({"host": "elsewhere", "process": 7, "token": "t"}))
    return file


def test_a_claim_of_another_machine_is_stale_once_no_beat_was_seen_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr("ckpt_probe.scheduling.claims.monotonic", lambda: now[0])
    path = tmp_path / "a.h5"
    file = elsewhere(path)
    for beat in range(3):
        with claimed(path, stale=60) as found:
            assert found == Busy("process 7 of elsewhere")
        # What the clock of that machine says does not matter, only that it changes.
        os.utime(file, (beat, beat))
        now[0] += 59
    with claimed(path, stale=60) as found:
        assert isinstance(found, Busy)
    now[0] += 60
    with claimed(path, stale=60) as found:
        assert isinstance(found, Claim)
    assert hidden(tmp_path) == []


def test_a_damaged_claim_holds_until_it_is_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("ckpt_probe.scheduling.claims.monotonic", lambda: now[0])
    path = tmp_path / "a.h5"
    path.with_name(".a.h5.claim-1").write_bytes(b"\xff{")
    with claimed(path) as found:
        assert found == Busy("another process")
    now[0] += 61
    with claimed(path) as found:
        assert isinstance(found, Claim)


def test_a_holder_shows_that_he_lives(tmp_path: Path) -> None:
    with claimed(tmp_path / "a.h5") as claim:
        assert isinstance(claim, Claim)
        os.utime(claim.file, (0, 0))
        claim.beat()
        assert claim.file.stat().st_mtime > 0


def test_where_nothing_can_be_written_the_error_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UnclaimedError, match=r"file/a\.h5: cannot be written"), claimed(tmp_path / "file" / "a.h5"):
        pass


def test_a_claim_of_a_dead_process_on_what_is_there_is_removed_and_no_other(tmp_path: Path) -> None:
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
    for name, (where, process) in claims.items():
        (tmp_path / f".{name}").write_text(json.dumps({"host": where, "process": process, "token": "t"}))
    (tmp_path / ".torn.claim-1").write_text("{")
    for name in ("done", "mine", "theirs", "torn"):
        (tmp_path / name).touch()
    remove_abandoned(tmp_path)
    left = {file.name for file in tmp_path.iterdir() if ".claim-" in file.name}
    assert left == {".missing.claim-1", ".mine.claim-1", ".theirs.claim-1", ".torn.claim-1"}
    remove_abandoned(tmp_path / "nowhere")


def test_a_claim_with_a_long_number_is_taken_over_and_not_repeated(tmp_path: Path) -> None:
    ended = json.dumps({"host": socket.gethostname(), "process": 2**22 + 1, "token": "t"})
    (tmp_path / f".x.h5.claim-{10**9 - 1}").write_text(ended)
    for _ in range(2):
        with claimed(tmp_path / "x.h5") as claim:
            assert isinstance(claim, Claim)
    assert list(tmp_path.iterdir()) == []


def test_a_process_of_another_container_of_the_same_name_is_not_looked_up_here(tmp_path: Path) -> None:
    holder = {"host": socket.gethostname(), "process": 2**22 + 1, "token": "t", "machine": "f" * 16}
    (tmp_path / ".x.h5.claim-1").write_text(json.dumps(holder))
    with claimed(tmp_path / "x.h5") as claim:
        assert claim == Busy(f"process {2**22 + 1} of {socket.gethostname()}")


def test_a_pipe_in_the_place_of_a_claim_is_taken_over_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".a.h5.claim-1")
    (tmp_path / "a.h5").write_bytes(b"")
    remove_abandoned(tmp_path)
    with claimed(tmp_path / "a.h5") as claim:
        assert not isinstance(claim, Busy)
