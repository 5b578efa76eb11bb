"""Tests of addresses: they survive a conversion to a path and back, and their credentials are removed."""

import os
import pickle
from pathlib import Path

import pytest

from ckpt_probe import addresses
from ckpt_probe.addresses import (
    Address,
    all_credentials,
    clean_words,
    credentials,
    is_address,
    redacted,
    refuse_address,
    use_credentials,
    without_credentials,
    without_secrets,
)
from ckpt_probe.errors import UsageError


@pytest.fixture(autouse=True)
def _no_stored_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "_credentials", addresses.Credentials())


def cleaned(path: Path | str) -> Path:
    return Address(without_secrets(str(path))) if is_address(path) else Path(path)


@pytest.mark.parametrize("text", ["s3://b/run/a.pt", "gs://b/run", "https://h/a.pt", "http://h:80/x", "hf://o/r/a.bin"])
def test_an_address_made_from_a_path_has_its_original_spelling(text: str) -> None:
    address = cleaned(Path(text))
    assert isinstance(address, Address)
    assert (str(address), os.fspath(address), f"{address}") == (text, text, text)
    assert str(address.parent / "b.pt") == f"{text.rpartition('/')[0]}/b.pt"
    assert address.name == text.rpartition("/")[2]
    assert str(pickle.loads(pickle.dumps(address))) == text
    assert str(cleaned(address)) == text


@pytest.mark.parametrize(
    "text", ["runs/digits", "/s3/b", "s3", "C:/x", "npz:x.npz", "memory://x", "./s3:/b", "file:///x"]
)
def test_text_that_is_not_an_address_stays_a_path(text: str) -> None:
    assert not is_address(text)


def test_user_and_parameters_are_stored_apart_from_the_address() -> None:
    original = "https://ann:pa%40ss@host/run/a.pt?X-Amz-Signature=abcdef&versionId=7#part"
    address = str(cleaned(original))
    assert address == "https://host/run/a.pt?versionId=7"
    assert credentials(address) == ("ann:pa%40ss", "X-Amz-Signature=abcdef")
    # Cleaning a clean address changes nothing, and addresses below it have the same user.
    assert str(cleaned(address)) == address
    assert credentials(f"{address}/deeper") == ("ann:pa%40ss", "")
    assert credentials("https://host/other") == ("", "")


def test_credentials_reach_another_process_with_a_task_and_never_through_the_environment() -> None:
    cleaned("https://ann:hunter22@h/a?sig=sig-nature")
    received = pickle.loads(pickle.dumps(all_credentials()))
    assert not [value for value in os.environ.values() if "hunter22" in value or "sig-nature" in value]
    assert repr(received) == "Credentials(1 addresses)"
    addresses._credentials.clear()
    with use_credentials(received):
        assert credentials("https://h/a") == ("ann:hunter22", "sig=sig-nature")
    assert credentials("https://h/a") == ("", "")


def test_the_slash_that_a_path_drops_does_not_hide_a_password() -> None:
    assert str(cleaned(Path("https://ann:secret@host/a.pt"))) == "https://host/a.pt"


def test_a_new_signature_replaces_the_old_one_but_another_file_is_refused() -> None:
    cleaned("https://h/a?X-Amz-Signature=one&X-Amz-Date=1")
    cleaned("https://h/a?X-Amz-Signature=two&X-Amz-Date=2")
    assert credentials("https://h/a")[1].endswith("X-Amz-Date=2")
    cleaned("https://h/get?file=a.npz")
    with pytest.raises(UsageError, match="used twice with different parameters"):
        cleaned("https://h/get?file=b.npz")


def test_an_address_within_an_argument_is_cleaned() -> None:
    assert clean_words("npz:https://u:secret@h/a.npz?sig=xyz") == "npz:https://h/a.npz"
    assert clean_words("--base=s3://key:secret@b/x") == "--base=s3://b/x"
    assert clean_words("hf://org/model@main/a.bin") == "hf://org/model@main/a.bin"
    assert clean_words("--step=3") == "--step=3"


def test_the_text_of_a_library_is_redacted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "topsecretkey")
    cleaned("https://ann:hunter22@h/a?sig=sigsigsig")
    text = "GET https://ann:hunter22@h/a?sig=sigsigsig with topsecretkey, http://other:pw1234@x/"
    assert redacted(text) == "GET https://[redacted]@h/a?[redacted] with [redacted], http://[redacted]@x/"


def test_results_are_not_written_to_an_address() -> None:
    refuse_address("dumps")
    with pytest.raises(UsageError, match="s3://b/out: results are written to local files only"):
        refuse_address(Path("s3://b/out"))


PARTS = ("hunter22", "sig-nature", "ann:")
"""Parts of the credentials in the texts below."""


@pytest.mark.parametrize(
    ("word", "clean"),
    [
        ('{"url": "https://ann:hunter22@h/a.npz?sig=sig-nature", "n": 1}', '{"url": "https://h/a.npz", "n": 1}'),
        ('{"a": ["https://ann:hunter22@h/a", "s3://ann:hunter22@b/x"]}', '{"a": ["https://h/a", "s3://b/x"]}'),
        ("{'a': 'https://h/a?X-Amz-Signature=sig-nature&versionId=7'}", "{'a': 'https://h/a?versionId=7'}"),
        ("run from https://ann:hunter22@h/a of Monday", "run from https://h/a of Monday"),
        ("NAME=https://ann:hunter22@h/a", "NAME=https://h/a"),
        ("My run=npz:https://ann:hunter22@h/a?sig=sig-nature", "My run=npz:https://h/a"),
        ("https://ann:hunter22@h/a,https://ann:hunter22@g/b?sig=sig-nature", "https://h/a,https://g/b"),
        ("https://h/a?sig=sig-nature https://g/b?sig=sig-nature", "https://h/a https://g/b"),
        ("https://ann:hunter%4022@h/a", "https://h/a"),
        ("HTTPS://ann:hunter22@h/a", "https://h/a"),
        (r'{"url": "https:\/\/ann:hunter22@h\/a?sig=sig-nature"}', '{"url": "https://h/a"}'),
        ("s3://ann:hunter22/with+slash@bucket/x y", "s3://bucket/x y"),
        ("https://hunter22@h/a", "https://h/a"),
        ("https://h:8080/a@b/c", "https://h:8080/a@b/c"),
        ("ftp://ann:hunter22@h/a", "ftp://[redacted]@h/a"),
        ("read https%3A%2F%2Fann%3Ahunter22%40h%2Fa", "read https%3A%2F%2F[redacted]%40h%2Fa"),
        ("xhttps://ann:hunter22@h/a;https://ann:hunter22@g/b", "xhttps://[redacted]@h/a;https://g/b"),
        ("https://h/https://ann:hunter22@g/b", "https://h/https://[redacted]@g/b"),
        ("hf://org/model@main/a.bin and a@b.org", "hf://org/model@main/a.bin and a@b.org"),
    ],
)
def test_credentials_are_removed_from_an_argument_of_any_form(word: str, clean: str) -> None:
    assert without_credentials(word) == clean
    assert all_credentials() == {}
    assert clean_words(word) == clean
    assert without_credentials({word: [word, 3, None]}) == {clean: [clean, 3, None]}
    # Cleaning again changes nothing, and the stored credentials are redacted in texts of libraries too.
    assert clean_words(clean) == clean
    assert not [part for part in PARTS if part in redacted(clean_words(word))]


def test_a_password_is_redacted_percent_encoded_and_decoded() -> None:
    cleaned("https://ann:hunter%4022@h/a")
    assert redacted("wrong password hunter@22 or hunter%4022") == "wrong password [redacted] or [redacted]"
