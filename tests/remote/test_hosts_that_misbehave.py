"""Tests of hosts that fail, redirect, list files of other directories, state false sizes, or do not exist."""

import contextlib
import ssl
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ckpt_probe.checkpoints import open_series
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.opening import open_checkpoint
from ckpt_probe.remote import hosts, resolve


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "LONGEST_WAIT", 0.02)


@pytest.fixture
def file(web: Any) -> Path:
    path = web.folder / "step-1.safetensors"
    save_file({"w": torch.arange(50_000.0)}, path)
    return path


def read(address: str) -> torch.Tensor:
    with open_checkpoint(address) as checkpoint:
        return checkpoint.read("w")


def error_of(address: str) -> str:
    with pytest.raises(DataError) as error:
        read(address)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_requests_to_a_host_that_fails_temporarily_are_repeated(web: Any, file: Path) -> None:
    web.failing = [503, 500]
    assert torch.equal(read(web.at("step-1.safetensors")), torch.arange(50_000.0))
    # fsspec requests a file's metadata twice in each attempt, by HEAD and by GET.
    assert web.requests[:3] == ["HEAD /step-1.safetensors", "GET /step-1.safetensors", "HEAD /step-1.safetensors"]


def test_a_part_of_a_file_is_requested_again_after_a_failure(web: Any, file: Path) -> None:
    with open_checkpoint(web.at("step-1.safetensors")) as checkpoint:
        web.failing = [502, 429, 503]
        assert torch.equal(checkpoint.read("w"), torch.arange(50_000.0))


def test_a_permanent_failure_is_an_error_of_one_line_after_five_attempts(web: Any, file: Path) -> None:
    with open_checkpoint(web.at("step-1.safetensors")) as checkpoint:
        web.failing, web.requests = [503] * 99, []
        with pytest.raises(
            DataError, match=r"step-1.safetensors: the host answers with HTTP status 503 \(5 attempts\)"
        ):
            checkpoint.read("w")
        assert len(web.requests) == 5
        web.failing = []


@pytest.mark.parametrize(
    ("status", "message"),
    [(403, "access denied; sign the address anew"), (401, "access denied"), (404, "no such file"), (410, "status 410")],
)
def test_permanent_errors_are_reported_without_further_attempts(
    web: Any, file: Path, status: int, message: str
) -> None:
    web.failing = [status] * 2
    assert message in error_of(web.at("step-1.safetensors"))
    assert len(web.requests) == 2


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_file_that_ends_early_is_an_error_of_one_line_and_leaves_no_copy(
    suffix: str, serve: Any, tmp_path: Path, cache: Path
) -> None:
    class EndsEarly(SimpleHTTPRequestHandler):
        def copyfile(self, source: Any, outputfile: Any) -> None:
            outputfile.write(source.read(1000))

        def log_message(self, *_: Any) -> None:
            pass

    save_file({"w": torch.arange(50_000.0)}, tmp_path / "a.safetensors")
    torch.save({"w": torch.arange(50_000.0)}, tmp_path / "a.pt")
    address = serve(partial(EndsEarly, directory=str(tmp_path)))
    message = f"{address}/a.{suffix}: the answer of the host ended early, or is not HTTP (5 attempts); try again later"
    assert error_of(f"{address}/a.{suffix}") == message
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_a_host_that_does_not_answer_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setenv("CKPT_PROBE_TIMEOUT", "0.05")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(16)
        message = error_of(f"http://127.0.0.1:{silent.getsockname()[1]}/a.pt")
    assert "the host does not answer in time (5 attempts)" in message
    assert "CKPT_PROBE_TIMEOUT" in message


@pytest.mark.parametrize("part", ["headers", "body"])
def test_a_host_that_sends_single_bytes_is_an_error(
    serve: Callable[[Any], str], monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """No single byte exceeds the timeout, but the answer never ends."""
    monkeypatch.setenv("CKPT_PROBE_TIMEOUT", "0.3")
    monkeypatch.setattr(hosts, "PATIENCE", 0.5)
    monkeypatch.setattr(hosts, "SLOWEST", 2**20)

    class Dripping(Quiet):
        def do_HEAD(self) -> None:
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\nAccept-Ranges: bytes\r\n")
            self.drip(b"headers" if part == "headers" else b"\r\n")

        def do_GET(self) -> None:
            self.do_HEAD()
            self.drip(b"body")

        def drip(self, text: bytes) -> None:
            with contextlib.suppress(OSError):
                if text == b"\r\n":
                    self.wfile.write(text)
                    return
                for _ in range(200):
                    self.wfile.write(b"x")
                    self.wfile.flush()
                    time.sleep(0.05)

    started = time.monotonic()
    message = error_of(f"{serve(Dripping)}/a.safetensors")
    assert "the host sends too slowly, its answer was not complete after 1 seconds" in message
    assert time.monotonic() - started < 8


def test_an_unreachable_host_is_an_error(web: Any, s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "the host cannot be reached (5 attempts)" in error_of("http://127.0.0.1:9/a.pt")
    monkeypatch.setenv("CKPT_PROBE_TIMEOUT", "no time")
    with pytest.raises(UsageError, match="CKPT_PROBE_TIMEOUT: expected a number of seconds, found 'no time'"):
        read("http://127.0.0.1:9/a.pt")


def test_an_unverified_certificate_is_an_error_of_one_line(tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(self_signed(tmp_path))
    running = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    running.socket = context.wrap_socket(running.socket, server_side=True)
    running.handle_error = lambda *_: None  # type: ignore[method-assign]
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    message = error_of(f"https://127.0.0.1:{running.server_port}/a.pt")
    running.shutdown()
    running.server_close()
    thread.join()
    assert "the host's certificate cannot be verified" in message


def test_a_redirect_is_followed_without_the_credentials_of_the_address(web: Any, file: Path, serve: Any) -> None:
    headers: list[str] = []

    class OtherHost(Quiet):
        def do_HEAD(self) -> None:
            headers.append(f"{self.path} {self.headers}")
            self.send_response(404)
            self.end_headers()

        do_GET = do_HEAD

    web.moved = {"/old.safetensors": "/step-1.safetensors", "/moved.safetensors": f"{serve(OtherHost)}/x"}
    assert len(read(web.at("old.safetensors"))) == 50_000
    message = error_of(web.at("moved.safetensors", "ann:hunter22") + "?sig=sig-nature")
    assert message.endswith("moved.safetensors: no such file or directory there")
    assert headers
    assert not [text for text in headers if "sig-nature" in text or "Authorization" in text]


@pytest.mark.parametrize(
    "link", ["../../etc/passwd.pt", "%2e%2e/%2e%2e/etc.pt", "a/../../b.pt", "sub%2f..%2f..%2fx.pt"]
)
def test_a_listing_with_names_outside_its_directory_is_refused(web: Any, link: str) -> None:
    web.pages = {"/run/": f'<a href="{link}">x</a>', "/run": "<p>"}
    with pytest.raises(DataError, match="a name that leads out of the directory"):
        open_series(resolve(web.at("run")))


def test_links_to_other_hosts_and_directories_are_ignored(web: Any, file: Path) -> None:
    (web.folder / "run").mkdir()
    file.rename(web.folder / "run" / file.name)
    links = ["http://evil.example/step-2.pt", "/etc/step-3.pt", "step-1.safetensors", "../", "?order=name"]
    web.pages = {"/run/": "".join(f'<a href="{link}">x</a>' for link in links), "/run": "<p>"}
    assert [member.name for member in open_series(resolve(web.at("run")))] == ["step-1"]


def test_an_s3_key_with_parent_directories_is_refused(s3: Any) -> None:
    s3.put("escape", "run/../../../step-1.pt", b"x")
    with pytest.raises(DataError, match="a name that leads out of the directory"):
        open_series(resolve("s3://escape/run"))
    with pytest.raises(DataError, match="not the address of a file or directory"):
        open_series(resolve("s3://escape/run/../other"))


def test_a_key_that_is_file_and_directory_is_an_error(s3: Any) -> None:
    s3.put("both", "run/a", b"x")
    s3.put("both", "run/a/step-1.pt", b"x")
    with pytest.raises(DataError, match="a file and a directory of one name"):
        open_series(resolve("s3://both/run"))


@pytest.mark.parametrize("accept_ranges", ["none", "bytes"])
@pytest.mark.parametrize("numbers", [50, 50_000, 3_000_000])
def test_files_of_a_host_without_ranges_are_read_completely(web: Any, accept_ranges: str, numbers: int) -> None:
    web.ranges, web.accept_ranges = False, accept_ranges
    save_file({"w": torch.arange(float(numbers))}, web.folder / "whole.safetensors")
    torch.save({"w": torch.arange(float(numbers))}, web.folder / "whole.pt")
    for name in ("whole.safetensors", "whole.pt"):
        assert torch.equal(read(web.at(name)), torch.arange(float(numbers)))


def test_a_false_size_is_an_error_before_memory_is_allocated(web: Any, file: Path) -> None:
    web.claims = {"/step-1.safetensors": 10**13}
    message = error_of(web.at("step-1.safetensors"))
    assert "longer than its header says (10,000,000,000,000 bytes instead of" in message
    file.rename(web.folder / "other.safetensors")
    web.claims, web.ranges, web.accept_ranges = {"/other.safetensors": 10**13}, False, "none"
    assert "(5 attempts)" in error_of(web.at("other.safetensors"))


def test_an_endless_page_is_not_read_into_memory(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []

    class Endless(Quiet):
        def do_HEAD(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", "1000000000000")
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(b"<p>" * 2**18)
                    sent.append(3 * 2**18)

    monkeypatch.setattr("ckpt_probe.budget.MEMORY", 2**20)
    with pytest.raises(DataError, match=r"/run: unpacks to [\d,]+ bytes or more"):
        open_series(resolve(f"{serve(Endless)}/run"))
    assert sum(sent) < 2**28


def test_credentials_in_an_s3_address_are_refused_and_not_repeated_in_the_message(s3: Any) -> None:
    with pytest.raises(UsageError) as error:
        read("s3://AKID:verysecret@bucket/a.pt")
    assert "credentials within the address" in str(error.value)
    assert "verysecret" not in str(error.value)


class Quiet(SimpleHTTPRequestHandler):
    """A handler that writes no log."""

    def log_message(self, format: str, *args: Any) -> None:
        """Write nothing."""


def self_signed(folder: Path) -> Path:
    """Write a key and a certificate signed by it, and return the file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "x")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    pem = serialization.Encoding.PEM
    text = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "server.pem").write_bytes(text + certificate.public_bytes(pem))
    return folder / "server.pem"
