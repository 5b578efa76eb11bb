"""Fixtures for tests of data: folders of images and a tokenizer."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "plot", "a", "very")


@pytest.fixture(scope="session")
def make_folder() -> Callable[..., Path]:
    """Return a function that writes DIRECTORY/CLASS/NUMBER.png for each class, of several sizes if `varied`."""

    def make(directory: Path, classes: dict[str, int], *, varied: bool = True) -> Path:
        number, generator = 0, np.random.default_rng(0)
        for name, count in classes.items():
            (directory / name).mkdir(parents=True, exist_ok=True)
            for within in range(count):
                size = (40 + 3 * (number % 4), 30 + 5 * (number % 3)) if varied else (40, 30)
                pixels = generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
                Image.fromarray(pixels).save(directory / name / f"{within:03}.png")
                number += 1
        return directory

    return make


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a tokenizer of eleven words and a config.json with 16 positions, and return the directory."""
    from transformers import BertTokenizerFast

    directory = tmp_path_factory.mktemp("tokenizer")
    (directory / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(str(directory / "vocab.txt")).save_pretrained(directory)
    (directory / "config.json").write_text(json.dumps({"model_type": "bert", "max_position_embeddings": 16}))
    return directory
