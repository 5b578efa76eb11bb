"""Tests of `gs://` through gcsfs against a loopback server with those paths of Google's JSON API that reading needs."""

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
    """A server with a bucket called `bucket`."""

    protocol_version = "HTTP/1.1"
    files: dict[str, bytes]
    sent: int

    def log_message(self, format: str, *args: Any) -> None:
        """Write nothing."""

    def do_GET(self) -> None:
        """Answer with metadata of an object, a listing, or bytes."""
        address = urlparse(self.path)
        query, path = dict(parse_qsl(address.query)), unquote(address.path)
        if path.endswith("/b/bucket/o"):
            prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
            matching = [name for name in self.files if name.startswith(prefix)]
            directly_in_prefix = [
                name for name in matching if not delimiter or delimiter not in name.removeprefix(prefix)
            ]
            below = sorted(
                {name[: name.index("/", len(prefix)) + 1] for name in matching if name not in directly_in_prefix}
            )
            return self.answer(
                200, json.dumps({"items": [self.facts(n) for n in directly_in_prefix], "prefixes": below}).encode()
            )
        named = re.search(r"/b/bucket/o/(.+)$", path)
        if not named or named[1] not in self.files:
            return self.answer(404, b'{"error": {"code": 404, "message": "not found"}}')
        if query.get("alt") != "media":
            return self.answer(200, json.dumps(self.facts(named[1])).encode())
        data, requested_range = self.files[named[1]], re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        part = data[int(requested_range[1]) : int(requested_range[2]) + 1] if requested_range else data
        type(self).sent += len(part)
        return self.answer(206 if requested_range else 200, part)

    def facts(self, name: str) -> dict[str, str]:
        """Return the metadata of an object as Google's server states them."""
        constants = {"etag": "e1", "generation": "1", "updated": "2025-01-01T00:00:00Z"}
        return {"name": name, "bucket": "bucket", "size": str(len(self.files[name])), **constants}

    def answer(self, status: int, body: bytes) -> None:
        """Send headers and body."""
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


Served = tuple[type[Google], dict[str, str]]


@pytest.fixture
def google(serve: Callable[[Any], str]) -> Served:
    """Return the server's state, and the environment that leads a command to it."""
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


def test_a_missing_object_is_an_error_of_one_line(google: Served, probe_apart: Probe) -> None:
    done = probe_apart(google[1], "inspect", "gs://bucket/none.pt")
    assert (done.returncode, done.stderr) == (1, "error: gs://bucket/none.pt: no such file or directory there\n")
