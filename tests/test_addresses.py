"""Addresses: what they look like again after they were paths, and that no credentials stay in them."""

import os
import pickle
from pathlib import Path

import pytest

from ckpt_probe.addresses import (
    ASIDE,
    Address,
    clean_words,
    credentials,
    is_address,
    place,
    redacted,
    refuse_address,
)
from ckpt_probe.errors import UsageError


@pytest.fixture(autouse=True)
def _nothing_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ASIDE, "{}")


@pytest.mark.parametrize("text", ["s3://b/run/a.pt", "gs://b/run", "https://h/a.pt", "http://h:80/x", "hf://o/r/a.bin"])
def test_an_address_that_was_a_path_reads_as_it_was_written(text: str) -> None:
    found = place(Path(text))
    assert isinstance(found, Address)
    assert (str(found), os.fspath(found), f"{found}") == (text, text, text)
    assert str(found.parent / "b.pt") == f"{text.rpartition('/')[0]}/b.pt"
    assert found.name == text.rpartition("/")[2]
    assert str(pickle.loads(pickle.dumps(found))) == text
    assert str(place(found)) == text


@pytest.mark.parametrize(
    "text", ["runs/digits", "/s3/b", "s3", "C:/x", "npz:x.npz", "memory://x", "./s3:/b", "file:///x"]
)
def test_what_is_no_address_stays_a_path(text: str) -> None:
    assert not is_address(text)
    assert type(place(text)) is type(Path(text))


def test_user_and_parameters_are_put_aside_and_found_again() -> None:
    whole = "https://ann:pa%40ss@host/run/a.pt?X-Amz-Signature=abcdef&versionId=7#part"
    found = str(place(whole))
    assert found == "https://host/run/a.pt?versionId=7"
    assert credentials(found) == ("ann:pa%40ss", "X-Amz-Signature=abcdef")
    # A second look at the clean address takes nothing away, and what is below is asked by the same user.
    assert str(place(found)) == found
    assert credentials(f"{found}/deeper") == ("ann:pa%40ss", "")
    assert credentials("https://host/other") == ("", "")


def test_the_slash_that_a_path_drops_does_not_hide_a_password() -> None:
    assert str(place(Path("https://ann:secret@host/a.pt"))) == "https://host/a.pt"


def test_a_new_signature_takes_the_place_of_an_old_one_but_another_file_is_refused() -> None:
    place("https://h/a?X-Amz-Signature=one&X-Amz-Date=1")
    place("https://h/a?X-Amz-Signature=two&X-Amz-Date=2")
    assert credentials("https://h/a")[1].endswith("X-Amz-Date=2")
    place("https://h/get?file=a.npz")
    with pytest.raises(UsageError, match="given twice with different parameters"):
        place("https://h/get?file=b.npz")


def test_an_address_within_a_word_is_cleaned() -> None:
    assert clean_words("npz:https://u:secret@h/a.npz?sig=xyz") == "npz:https://h/a.npz"
    assert clean_words("--base=s3://key:secret@b/x") == "--base=s3://b/x"
    assert clean_words("hf://org/model@main/a.bin") == "hf://org/model@main/a.bin"
    assert clean_words("--step=3") == "--step=3"


def test_a_library_s_text_is_redacted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "topsecretkey")
    place("https://ann:hunter22@h/a?sig=sigsigsig")
    text = "GET https://ann:hunter22@h/a?sig=sigsigsig with topsecretkey, http://other:pw1234@x/"
    assert redacted(text) == "GET https://[redacted]@h/a?[redacted] with [redacted], http://[redacted]@x/"


def test_results_are_not_written_to_an_address() -> None:
    refuse_address("dumps")
    with pytest.raises(UsageError, match="s3://b/out: results are written to local files alone"):
        refuse_address(Path("s3://b/out"))
