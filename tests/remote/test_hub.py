"""Tests of `hf://` through huggingface_hub's file system against a loopback server with paths of the hub's API."""

import json
import os
import re
import subprocess
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_loopbacktokenloopbacktoken"


Probe = Callable[..., subprocess.CompletedProcess[str]]


class Hub(BaseHTTPRequestHandler):
    """A server with one model of one commit, `org/model`."""

    protocol_version = "HTTP/1.1"
    files: dict[str, bytes]
    sent: int
    requests: list[str]

    def log_message(self, format: str, *args: Any) -> None:
        """Write nothing."""

    def do_GET(self) -> None:
        """Answer with metadata of the model, its tree, or bytes of a file."""
        path = self.path.partition("?")[0]
        self.requests.append(f"{self.command} {path}")
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, b"{}")
        if path.startswith("/api/models/org/model/tree/"):
            return self.answer(200, json.dumps([self.facts(name) for name in self.files]).encode())
        if re.fullmatch(r"/api/models/org/model(/revision/\w+)?", path):
            return self.answer(200, json.dumps({"id": "org/model", "sha": COMMIT, "siblings": []}).encode())
        resolved = re.fullmatch(r"/org/model/resolve/\w+/(.+)", path)
        if not resolved or resolved[1] not in self.files:
            return self.answer(404, b"{}", X_Error_Code="EntryNotFound" if resolved else "RepoNotFound")
        data, requested_range = (
            self.files[resolved[1]],
            re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")),
        )
        part = data[int(requested_range[1]) : int(requested_range[2]) + 1] if requested_range else data
        return self.answer(206 if requested_range else 200, part, X_Repo_Commit=COMMIT, ETag='"1"')

    do_HEAD = do_GET

    def do_POST(self) -> None:
        """Answer with metadata of paths."""
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.requests.append(f"POST {self.path} {body[:200]}")
        paths = json.loads(body)["paths"] if body.startswith("{") else re.findall(r"paths=([^&]+)", body)
        self.answer(200, json.dumps([self.facts(name) for name in paths if name in self.files]).encode())

    def facts(self, name: str) -> dict[str, Any]:
        """Return the metadata of a file as the hub states them."""
        return {"type": "file", "path": name, "size": len(self.files[name]), "oid": f"{len(self.files[name]):040x}"}

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        """Send headers and body."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            type(self).sent += len(body)
            self.wfile.write(body)


Served = tuple[type[Hub], dict[str, str]]


@pytest.fixture
def hub(tmp_path: Path, serve: Callable[[Any], str]) -> Served:
    """Return the server's state, and the environment that leads a command to it."""
    save_file({"large": torch.zeros(2_000_000), "head.weight": torch.ones(3, 4)}, tmp_path / "model.safetensors")
    files = {"model.safetensors": (tmp_path / "model.safetensors").read_bytes(), "config.json": b"{}"}
    state = type("State", (Hub,), {"files": files, "sent": 0, "requests": []})
    hub_variables = {
        "HF_ENDPOINT": serve(state),
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "0",
    }
    return state, {**os.environ, **hub_variables}


def test_inspecting_a_model_of_the_hub_reads_its_header_only(hub: Served, probe_apart: Probe) -> None:
    state, environment = hub
    done = probe_apart(environment, "inspect", "hf://org/model/model.safetensors", "--json")
    assert done.returncode == 0, (done.stderr, state.requests)
    facts = json.loads(done.stdout)
    assert [entry["name"] for entry in facts["tensors"]] == ["head.weight", "large"]
    assert facts["config_directory"] == "hf://org/model"
    assert state.sent < 0.02 * len(state.files["model.safetensors"])
    weights = probe_apart(environment, "weights", "hf://org/model@main", "--set", "classifier=head", "--json")
    assert weights.returncode == 0, (weights.stderr, state.requests)
    assert json.loads(weights.stdout)["classifier"] == "head.weight"
    assert state.sent < 0.04 * len(state.files["model.safetensors"])


def test_a_missing_file_and_a_wrong_token_are_errors_of_one_line(hub: Served, probe_apart: Probe) -> None:
    _, environment = hub
    done = probe_apart(environment, "inspect", "hf://org/model/none.safetensors")
    assert (done.returncode, done.stderr) == (
        1,
        "error: hf://org/model/none.safetensors: no such file or directory there\n",
    )
    wrong = {**environment, "HF_TOKEN": "hf_anothertokenanothertoken"}
    done = probe_apart(wrong, "inspect", "hf://org/model/model.safetensors", "--debug")
    assert done.returncode == 1
    assert "hf_another" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: hf://org/model/model.safetensors: ")
