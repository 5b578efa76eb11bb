"""Tests of memory budgets: content out of proportion to its file is refused, that of real files is accepted."""

import io
import json
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from ckpt_probe.budget import ENTRY, GROWTH, MEMORY, Budget, OverBudget
from ckpt_probe.checkpoints.formats.scanning import scan
from ckpt_probe.data import load_data
from ckpt_probe.errors import DataError
from ckpt_probe.files import read_object


def test_counted_bytes_add_up_and_their_limit_grows_with_the_file() -> None:
    small, large = Budget("small.npz"), Budget("large.npz", MEMORY)
    for budget, most in ((small, MEMORY), (large, GROWTH * MEMORY)):
        budget.spend(most // 2)
        budget.spend(most // 2 - ENTRY, 1)
        with pytest.raises(OverBudget, match=rf"unpacks to {most + 1:,} bytes or more, which"):
            budget.spend(1)
    assert issubclass(OverBudget, DataError)


def test_json_is_counted_before_it_is_parsed() -> None:
    assert Budget("a.json").parse_json(b'{"a": [1, 2]}') == {"a": [1, 2]}
    with pytest.raises(OverBudget, match=r"^a\.json: unpacks to"):
        Budget("a.json").parse_json(b"[" + b"[]," * (MEMORY // ENTRY) + b"]")


def spent(budget: Budget) -> int:
    """Return the number of bytes counted so far, from the message of an error."""
    with pytest.raises(OverBudget) as caught:
        budget.spend(2**60)
    return int(str(caught.value).partition("unpacks to ")[2].partition(" ")[0].replace(",", "")) - 2**60


def test_files_that_are_large_for_a_reason_are_within_the_budget(tmp_path: Path) -> None:
    """The bytes counted per byte of a file do not depend on its size, so small files represent large ones."""
    import torch.distributed.checkpoint as dcp

    state = {f"model.layers.{number}.mlp.experts.weight": torch.zeros(1) for number in range(2000)}
    torch.save({"state_dict": state, "optimizer": {"state": dict(enumerate(state.values()))}}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        pickle = io.BytesIO(archive.read("a/data.pkl"))
    budget = Budget("a.pt")
    scan(pickle, budget)
    assert spent(budget) < GROWTH * (tmp_path / "a.pt").stat().st_size
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state, checkpoint_id=tmp_path / "dcp", no_dist=True)
    budget = Budget(".metadata")
    scan(io.BytesIO((tmp_path / "dcp" / ".metadata").read_bytes()), budget)
    assert spent(budget) < GROWTH * sum(file.stat().st_size for file in (tmp_path / "dcp").iterdir())
    names = {
        f"model.layers.{number}.mlp.experts.down_proj.weight": "model-00001.safetensors" for number in range(10**5)
    }
    (tmp_path / "index.json").write_text(json.dumps({"weight_map": names}, indent=2))
    assert len(read_object(tmp_path / "index.json", "an index")["weight_map"]) == 10**5


def test_sixty_thousand_images_of_one_colour_are_within_the_budget(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros((60_000, 28, 28), np.uint8), y=np.arange(60_000) % 10)
    assert len(load_data(f"npz:{tmp_path / 'a.npz'}").splits["train"]) == 45_000
