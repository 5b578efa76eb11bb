"""Hosts on loopback: moto's server, which speaks S3, and a web server with ranges that can be made to misbehave."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ckpt_probe import addresses
from ckpt_probe.remote import paths

SECRETS = {"AWS_ACCESS_KEY_ID": "AKIDLOOPBACK", "AWS_SECRET_ACCESS_KEY": "s3cr3t-of-loopback-s3cr3t"}


@dataclass
class S3:
    """A server that speaks S3: its address, the requests that it received, and the bytes of bodies that it sent."""

    endpoint: str
    client: Any
    sent: int = 0
    requests: list[str] = field(default_factory=list)

    def put(self, bucket: str, key: str, file: Path | bytes) -> None:
        """Store an object."""
        self.client.create_bucket(Bucket=bucket)
        body = file.read_bytes() if isinstance(file, Path) else file
        self.client.put_object(Bucket=bucket, Key=key, Body=body)

    def put_all(self, bucket: str, prefix: str, folder: Path) -> None:
        """Store every file below a folder."""
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                self.put(bucket, f"{prefix}/{file.relative_to(folder).as_posix()}", file)

    def forget(self) -> None:
        """Reset the counts of requests and bytes."""
        self.sent = 0
        self.requests.clear()


@pytest.fixture(scope="session")
def _s3_server() -> Iterator[S3]:
    boto3 = pytest.importorskip("boto3")
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    application = DomainDispatcherApplication(create_backend_app)

    def count_requests(environ: Any, start_response: Any) -> Any:
        body = b"".join(application(environ, start_response))
        server.requests.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}")
        server.sent += len(body)
        return [body]

    running = make_server("127.0.0.1", 0, count_requests, threaded=True)
    endpoint = f"http://127.0.0.1:{running.server_port}"
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id=SECRETS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=SECRETS["AWS_SECRET_ACCESS_KEY"],
    )
    server = S3(endpoint, client)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    yield server
    running.shutdown()
    thread.join()


@pytest.fixture
def s3(_s3_server: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    """Return the server, and set the environment variables that lead this process to it."""
    for name, value in {**SECRETS, "AWS_ENDPOINT_URL": _s3_server.endpoint, "AWS_DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    _s3_server.forget()
    return _s3_server


@pytest.fixture
def serve() -> Iterator[Callable[[Any], str]]:
    """Return a function that serves requests with a handler's class until the test ends, and returns the address."""
    running: list[tuple[ThreadingHTTPServer, threading.Thread]] = []

    def start(handler: Any) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        running.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server, thread in running:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def probe_apart() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs a command in a separate process with the given environment."""

    def run(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
        program = "from ckpt_probe.cli.app import main; main()"
        start = [sys.executable, "-c", program, *words]
        return subprocess.run(start, env=environment, capture_output=True, text=True, check=False)

    return run


@dataclass
class Web:
    """A web server of a folder.

    Attributes:
        failing: Status codes of the next answers, one for each request.
        moved: Targets of redirects by path.
        accept_ranges: Header of this name.
        required: Text that a request's address or authorization has to contain.
        claims: Sizes stated in place of the true ones, by path.
    """

    folder: Path
    port: int = 0
    ranges: bool = True
    accept_ranges: str = "bytes"
    failing: list[int] = field(default_factory=list)
    moved: dict[str, str] = field(default_factory=dict)
    pages: dict[str, str] = field(default_factory=dict)
    claims: dict[str, int] = field(default_factory=dict)
    required: str = ""
    requests: list[str] = field(default_factory=list)
    sent: int = 0

    def at(self, path: str, user: str = "") -> str:
        """Return the address of a path."""
        return f"http://{user}{'@' if user else ''}127.0.0.1:{self.port}/{path}"


class _Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, web: Web, *arguments: Any) -> None:
        self.web = web
        super().__init__(*arguments, directory=str(web.folder))

    def log_message(self, format: str, *args: Any) -> None:
        """Write nothing."""

    def do_HEAD(self) -> None:
        """Answer with headers only."""
        self._answer(body=False)

    def do_GET(self) -> None:
        """Answer with a file, a part of it, or a page of links."""
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        web, path = self.web, self.path.partition("?")[0]
        web.requests.append(f"{self.command} {self.path} {self.headers.get('Range', '')}".strip())
        if web.failing:
            return self._send(web.failing.pop(0), b"", body=body)
        if web.required and web.required not in f"{self.headers.get('Authorization', '')} {self.path}":
            return self._send(403, b"", body=body)
        if path in web.moved:
            return self._send(302, b"", body=body, Location=web.moved[path])
        if path in web.pages:
            return self._send(200, web.pages[path].encode(), body=body, Content_Type="text/html")
        file = Path(self.translate_path(path))
        if file.is_dir():
            if not path.endswith("/"):
                return self._send(301, b"", body=body, Location=f"{path}/")
            links = [f"{entry.name}{'/' * entry.is_dir()}" for entry in sorted(file.iterdir())]
            page = "".join(f'<a href="{link}">{link}</a>' for link in links)
            return self._send(200, page.encode(), body=body, Content_Type="text/html; charset=utf-8")
        if not file.is_file():
            return self._send(404, b"", body=body)
        return self._send_file(file, path, body=body)

    def _send_file(self, file: Path, path: str, *, body: bool) -> None:
        data = file.read_bytes()
        file_headers = {"ETag": f'"{file.stat().st_mtime_ns:x}"', "Accept_Ranges": self.web.accept_ranges}
        requested_range = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        size = self.web.claims.get(path, len(data))
        if requested_range and self.web.ranges:
            start, stop = int(requested_range[1]), int(requested_range[2]) + 1
            part = data[start:stop]
            return self._send(206, part, body=body, Content_Range=f"bytes {start}-{stop - 1}/{size}", **file_headers)
        return self._send(200, data, body=body, size=size, **file_headers)

    def _send(self, status: int, data: bytes, *, body: bool, size: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data) if size is None else size))
        self.end_headers()
        if body:
            self.web.sent += len(data)
            self.wfile.write(data)
            if size is not None and size != len(data):
                self.close_connection = True


@pytest.fixture
def web(tmp_path: Path, serve: Callable[[Any], str]) -> Web:
    """Return a web server of the folder `web` in this test's directory."""
    (tmp_path / "web").mkdir()
    server = Web(tmp_path / "web")
    server.port = int(serve(partial(_Handler, server)).rpartition(":")[2])
    return server


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty cache directory, and forget the credentials and listings of earlier tests."""
    monkeypatch.setattr(addresses, "_credentials", addresses.Credentials())
    for name, empty in (("_roots", set()), ("_entries", {}), ("_listings", {})):
        monkeypatch.setattr(paths, name, empty)
    monkeypatch.setenv("CKPT_PROBE_CACHE", str(tmp_path / "cache"))
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    return tmp_path / "cache"
