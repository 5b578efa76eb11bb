"""Small real files that tests of data share: folders of images, a tokenizer and data sets on disk."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "plot", "a", "very")


@pytest.fixture(scope="session")
def make_folder() -> Callable[..., Path]:
    """Makes PLACE/CLASS/NUMBER.png for each class and count, of various sizes where `varied`."""

    def make(place: Path, classes: dict[str, int], *, varied: bool = True) -> Path:
        number, generator = 0, np.random.default_rng(0)
        for name, count in classes.items():
            (place / name).mkdir(parents=True, exist_ok=True)
            for within in range(count):
                size = (40 + 3 * (number % 4), 30 + 5 * (number % 3)) if varied else (40, 30)
                pixels = generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / name / f"{within:03}.png")
                number += 1
        return place

    return make


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tokenizer of eleven words and a config.json of 16 positions."""
    from transformers import BertTokenizerFast

    place = tmp_path_factory.mktemp("tokenizer")
    (place / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(str(place / "vocab.txt")).save_pretrained(place)
    (place / "config.json").write_text(json.dumps({"model_type": "bert", "max_position_embeddings": 16}))
    return place
