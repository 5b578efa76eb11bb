"""Tests of replacing files: after an error or a kill the old file is unchanged, otherwise the new one is complete."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ckpt_probe import files
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.files import read_object, refuse_existing, replacing, replacing_directory, write_text


def test_a_file_is_written_completely_and_no_temporary_file_stays(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.txt"
    write_text(target, "gräm")
    assert target.read_text(encoding="utf-8") == "gräm"
    assert list(target.parent.iterdir()) == [target]


def test_a_file_is_on_the_disk_before_its_name_is_and_the_name_before_the_call_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[int, bool]] = []
    target, directory = tmp_path / "a.txt", tmp_path / "run"
    monkeypatch.setattr(os, "fsync", lambda file: synced.append((os.fstat(file).st_ino, target.exists())))
    write_text(target, "x")
    assert synced == [(target.stat().st_ino, False), (tmp_path.stat().st_ino, True)]
    synced.clear()
    with replacing_directory(directory) as temporary:
        (temporary / "b.txt").write_text("y")
    numbers = [number for number, _ in synced]
    assert numbers == [path.stat().st_ino for path in (directory / "b.txt", directory, tmp_path)]


def test_an_existing_file_is_refused_unless_asked(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_text(target, "old")
    with pytest.raises(UsageError, match=r"a\.txt: exists already; add `overwrite=True`"):
        write_text(target, "new")
    assert target.read_text() == "old"
    write_text(target, "new", overwrite=True)
    assert target.read_text() == "new"


def test_an_output_that_cannot_be_written_is_refused_before_the_computation(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"a directory; expected the name of a file"):
        refuse_existing(tmp_path, overwrite=True)
    refuse_existing(tmp_path, overwrite=True, directory=True)
    refuse_existing(tmp_path / "new" / "deep" / "a.csv", overwrite=False)
    with pytest.raises(DataError, match=r"file/new/a\.csv: cannot be written: .*file is not a directory"):
        refuse_existing(tmp_path / "file" / "new" / "a.csv", overwrite=False)


def test_a_device_a_pipe_and_the_links_of_dev_are_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/null"), Path("/dev/stdout")):
        for overwrite in (False, True):
            with pytest.raises(UsageError, match="a device, a pipe or a socket, which is not replaced; name a file"):
                refuse_existing(path, overwrite=overwrite)
    assert (tmp_path / "pipe").is_fifo()


def test_a_dangling_link_counts_as_existing(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="exists already"):
        write_text(tmp_path / "link", "x")


def test_an_error_while_writing_leaves_only_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_text(target, "old")

    def break_off() -> None:
        with replacing(target, overwrite=True) as temporary:
            temporary.write_text("half")
            raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        break_off()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_if_nothing_can_be_written_one_clear_error_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for below in ("below", "deeper/below", "deeper/still/below"):
        with pytest.raises(DataError, match=r"below: cannot be written"):
            write_text(tmp_path / "file" / below, "x")
        with (
            pytest.raises(DataError, match=r"below: cannot be written"),
            replacing_directory(tmp_path / "file" / below),
        ):
            pass


KILLED = """
import sys, time
from pathlib import Path
from ckpt_probe.files import read_object, replacing
with replacing(Path(sys.argv[1]), overwrite=True) as temporary:
    temporary.write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


def test_kill_9_leaves_the_old_file_and_the_next_writer_removes_the_temporary_file(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_text(target, "old")
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(target)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"writing\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert target.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2
    write_text(target, "new", overwrite=True)
    assert list(tmp_path.iterdir()) == [target]


def test_a_temporary_file_of_a_running_process_is_not_removed(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(target)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    write_text(target, "mine")
    assert len(list(tmp_path.glob(".*.part"))) == 1
    process.kill()
    process.wait()
    process.stdout.close()


KILLED_MIDWAY = """
import os, signal, sys
from pathlib import Path
from ckpt_probe.files import read_object, replacing_directory

out, moment = Path(sys.argv[1]), sys.argv[2]
rename = Path.rename

def dying(path, target):
    if moment == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    done = rename(path, target)
    os.kill(os.getpid(), signal.SIGKILL)
    return done

Path.rename = dying
with replacing_directory(out, overwrite=True) as folder:
    (folder / "file").write_text("new")
"""


@pytest.mark.parametrize("moment", ["before", "between"])
def test_a_directory_is_restored_if_its_replacement_was_killed(tmp_path: Path, moment: str) -> None:
    out = tmp_path / "folder"
    out.mkdir()
    (out / "file").write_text("old")
    done = subprocess.run([sys.executable, "-c", KILLED_MIDWAY, str(out), moment])
    assert done.returncode == -signal.SIGKILL
    assert out.exists() == (moment == "before")
    with pytest.raises(UsageError, match="exists already"), replacing_directory(out):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert (out / "file").read_text() == "old"
    with replacing_directory(out, overwrite=True) as folder:
        (folder / "file").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert (out / "file").read_text() == "new"


def test_a_directory_is_restored_at_once_if_the_new_one_cannot_be_moved_into_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, rename = tmp_path / "folder", Path.rename
    out.mkdir()
    (out / "file").write_text("old")

    def interrupted(path: Path, target: Path) -> Path:
        if path.suffix == ".part":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), replacing_directory(out, overwrite=True) as folder:
        (folder / "file").write_text("new")
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "file"]
    assert (out / "file").read_text() == "old"


def test_only_files_of_ended_processes_are_removed(tmp_path: Path) -> None:
    out, dead, random = tmp_path / "folder", 2**22 + 1, "0123456789abcdef"  # no process has a number that high
    machine, other_machine = files.machine_id(), "f" * 16
    alive = [f".folder.{machine}-{os.getppid()}-{random}.{kind}" for kind in ("old", "part")]
    of_others = [f".folder.{other_machine}-{dead}-{random}.old", f".folder.{other_machine}-{dead}-{random}.part"]
    of_others += [f".folder2.{machine}-{dead}-{random}.old", f".folder.host-{dead}.part"]
    abandoned = [
        f".folder.{machine}-{process}-{random}.{kind}" for kind in ("old", "part") for process in (dead, os.getpid())
    ]
    for name in (*alive, *of_others, *abandoned):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    with replacing_directory(out, overwrite=True) as folder:
        (folder / "file").write_text("new")
    assert {path.name for path in tmp_path.iterdir()} == {"folder", *alive, *of_others}
    (tmp_path / f".a.txt.{machine}-{dead}-{random}.part").mkdir()
    write_text(tmp_path / "a.txt", "new")
    assert {path.name for path in tmp_path.iterdir()} == {"a.txt", "folder", *alive, *of_others}


def test_files_of_another_machine_are_removed_by_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    abandoned = [tmp_path / f".a.txt.{'f' * 16}-7-0123456789abcdef.part", tmp_path / ".a.txt.oldhost-7.part"]
    for path in abandoned:
        path.write_text("half")
    write_text(tmp_path / "a.txt", "1")
    assert all(path.exists() for path in abandoned)
    now = files.time.time()
    monkeypatch.setattr(files.time, "time", lambda: now + files.ABANDONED_SECONDS + 60)
    write_text(tmp_path / "a.txt", "2", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_temporary_file_cannot_be_predicted_and_links_are_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with replacing(tmp_path / "a") as first, replacing(tmp_path / "a") as second:
        assert first != second
        assert first.stat().st_size == second.stat().st_size == 0
    precious = tmp_path / "precious"
    precious.write_text("precious")
    monkeypatch.setattr(files.secrets, "token_hex", lambda size: "0" * 2 * size)
    guessed = tmp_path / f".b.{files.machine_id()}-{os.getpid()}-{'0' * 16}.part"
    guessed.symlink_to(precious)
    monkeypatch.setattr(files, "_remove_abandoned", lambda path, kind: None)
    with pytest.raises(DataError, match="b: cannot be written: File exists"):
        write_text(tmp_path / "b", "other")
    assert precious.read_text() == "precious"


def test_a_path_without_a_file_name_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for writer in (replacing, replacing_directory):
        for path in (Path(), Path("..")):
            with pytest.raises(UsageError, match="not a valid name for an output file"), writer(path, overwrite=True):
                pass


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not a table (Expecting"),
        (b"[1]", "not a table (expected a JSON object, found list)"),
        (b"[" * 100_000, "not a table (maximum recursion depth"),
        (b"\xff\xfe", "not a table ('utf-8' codec"),
        (None, "cannot be read: No such file"),
    ],
)
def test_a_file_that_is_not_a_json_object_is_refused(content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_object(tmp_path / "x.json", "a table")
    assert str(caught.value).startswith(f"{tmp_path / 'x.json'}: {message}")


def test_a_json_file_that_is_too_large_or_not_regular_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(2**30)
    os.mkfifo(tmp_path / "pipe.json")
    for name, message in (
        ("large.json", "unpacks to 1,073,741,824 bytes"),
        ("pipe.json", "a pipe, a socket or a device"),
    ):
        with pytest.raises(DataError, match=message):
            read_object(tmp_path / name, "a table")
