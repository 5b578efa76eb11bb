"""`gs://` through gcsfs against a server on loopback with the paths of Google's JSON interface that reading needs."""

import json
import os
import re
import subprocess
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qsl, unquote, urlparse

import pytest
import torch
from safetensors.torch import save

Probe = Callable[..., subprocess.CompletedProcess[str]]


class Google(BaseHTTPRequestHandler):
    """A bucket called `bucket`."""

    protocol_version = "HTTP/1.1"
    files: dict[str, bytes]
    sent: int

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Facts of an object, a listing, or bytes."""
        address = urlparse(self.path)
        query, path = dict(parse_qsl(address.query)), unquote(address.path)
        if path.endswith("/b/bucket/o"):
            prefix, parting = query.get("prefix", ""), query.get("delimiter")
            found = [name for name in self.files if name.startswith(prefix)]
            here = [name for name in found if not parting or parting not in name.removeprefix(prefix)]
            below = sorted({name[: name.index("/", len(prefix)) + 1] for name in found if name not in here})
            return self.answer(200, json.dumps({"items": [self.facts(n) for n in here], "prefixes": below}).encode())
        named = re.search(r"/b/bucket/o/(.+)$", path)
        if not named or named[1] not in self.files:
            return self.answer(404, b'{"error": {"code": 404, "message": "not found"}}')
        if query.get("alt") != "media":
            return self.answer(200, json.dumps(self.facts(named[1])).encode())
        data, asked = self.files[named[1]], re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        part = data[int(asked[1]) : int(asked[2]) + 1] if asked else data
        type(self).sent += len(part)
        return self.answer(206 if asked else 200, part)

    def facts(self, name: str) -> dict[str, str]:
        """As Google tells them."""
        told = {"etag": "e1", "generation": "1", "updated": "2025-01-01T00:00:00Z"}
        return {"name": name, "bucket": "bucket", "size": str(len(self.files[name])), **told}

    def answer(self, status: int, body: bytes) -> None:
        """Headers and body."""
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


Served = tuple[type[Google], dict[str, str]]


@pytest.fixture
def google(serve: Callable[[Any], str]) -> Served:
    """The server's state, and the environment that leads a command to it."""
    tensors = {"large": torch.zeros(500_000), "head.weight": torch.ones(3, 4)}
    files = {f"run/step-{step}.safetensors": save(tensors) for step in (1, 2)}
    state = type("State", (Google,), {"files": files, "sent": 0})
    return state, {**os.environ, "STORAGE_EMULATOR_HOST": serve(state), "FSSPEC_GS_TOKEN": "anon"}


def test_a_run_in_a_bucket_is_read_by_ranges(google: Served, probe_apart: Probe) -> None:
    state, environment = google
    done = probe_apart(environment, "weights", "gs://bucket/run", "--set", "classifier=head", "--json")
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["checkpoint"] for line in done.stdout.splitlines()] == ["step-1", "step-2"]
    assert state.sent < 0.1 * sum(map(len, state.files.values()))


def test_what_is_not_in_the_bucket_is_one_line(google: Served, probe_apart: Probe) -> None:
    done = probe_apart(google[1], "inspect", "gs://bucket/none.pt")
    assert (done.returncode, done.stderr) == (1, "error: gs://bucket/none.pt: no such file or directory there\n")
