"""Checks that the rows of a sample do not depend on other samples of its batch, and equal those of the framework."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ckpt_probe.dumps import open_dump
from ckpt_probe.extraction import extract_series

transformers: Any = pytest.importorskip("transformers")
WORDS = ("<pad>", "<unk>", "<eos>", "<mask>", *"abcdefghijklmnop")
TEXTS = ("a b c d e f g h", "k", "c a", "p o n m l k j i h g f e", "b b b", "d e")
SIZE = {"vocab_size": len(WORDS), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
WIDTH = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
PAIR = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
GPT2 = ("GPT2", {"n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 20})
T5 = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
KINDS: dict[str, tuple[str, dict[str, Any], str]] = {
    "bert": ("Bert", WIDTH, "right"),
    "roberta": ("Roberta", {**WIDTH, "max_position_embeddings": 24}, "right"),
    "without a mask": ("FNet", WIDTH, "right"),
    "absolute positions": (*GPT2, "right"),
    "absolute positions, padded at the start": (*GPT2, "left"),
    "no padding token": ("GPT2", {**GPT2[1], "pad_token_id": None}, "left"),
    "rotary positions": ("Llama", {**WIDTH, "num_key_value_heads": 1}, "left"),
    "summary of the last token": ("XLNet", {"d_model": 8, "n_layer": 1, "n_head": 2, "d_inner": 8}, "left"),
    "encoder and decoder": ("Bart", {**PAIR, "d_model": 8, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}, "right"),
    "relative positions": ("T5", {**T5, "decoder_start_token_id": 0}, "left"),
}


def make_model(kind: str, task: str, directory: Path, side: str = "right", **settings: Any) -> tuple[Any, Any]:
    """Save a small model of transformers with large weights and its tokenizer in a directory, and return both."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    config = getattr(transformers, f"{kind}Config")(**{**SIZE, "num_labels": 3, **settings})
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}{task}")(config).eval()
    with torch.no_grad():
        for weights in model.parameters():
            weights.copy_(0.5 * torch.randn_like(weights))
    model.save_pretrained(directory)
    words = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    if task == "ForSequenceClassification":
        ends = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 2)])
        words.post_processor = ends  # pyright: ignore[reportAttributeAccessIssue]
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "<eos>", "mask_token": "<mask>"}
    names = ["input_ids"] if kind == "FNet" else ["input_ids", "attention_mask"]
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, padding_side=side, model_max_length=20, model_input_names=names, **special
    )
    tokenizer.save_pretrained(directory)
    return model, tokenizer


def extract_rows(directory: Path, out: Path, data: str, batch_size: int, **options: Any) -> dict[str, Tensor]:
    """Extract a data set of one split, and return its features, labels, logits and losses of each row."""
    extract_series(directory, out, data=data, batch_size=batch_size, device="cpu", **options)
    with open_dump(next(out.glob("*.h5"))) as dump:
        split = dump[dump.splits[0]]
        arrays = {name: getattr(split, name) for name in ("features", "labels", "logits", "loss")}
        rows = {name: torch.as_tensor(np.asarray(array[:])) for name, array in arrays.items() if array is not None}
        bias = 0 if dump.bias is None else torch.as_tensor(np.asarray(dump.bias[:]))
        weights = torch.as_tensor(np.asarray(dump.weights[:]))
    if "logits" in rows:
        torch.testing.assert_close(
            rows["features"].double() @ weights.T + bias, rows["logits"].double(), rtol=1e-4, atol=1e-4
        )
    return rows


@pytest.mark.parametrize("name", KINDS)
def test_rows_of_texts_equal_those_of_each_text_alone(name: str, tmp_path: Path) -> None:
    kind, settings, side = KINDS[name]
    directory = tmp_path / "model"
    model, tokenizer = make_model(kind, "ForSequenceClassification", directory, side, **settings)
    with torch.inference_mode():
        alone = torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in TEXTS])
    rows = [f'"{text}",{number % 3}\n' for number, text in enumerate(TEXTS)]
    (tmp_path / "texts.csv").write_text("text,label\n" + "".join(rows))
    data = f"csv:{tmp_path / 'texts.csv'}"
    layers = {"layers": "all"} if name.startswith("absolute") else {}
    together = extract_rows(directory, tmp_path / "together", data, len(TEXTS), **layers)
    torch.testing.assert_close(together["logits"], alone, rtol=1e-4, atol=1e-4)
    assert together["labels"].tolist() == [number % 3 for number in range(len(TEXTS))]
    single = extract_rows(directory, tmp_path / "single", data, 1)
    torch.testing.assert_close(together["features"], single["features"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["GPT2", "Bert", "FNet"])
def test_rows_of_windows_equal_those_of_each_window_alone(kind: str, tmp_path: Path) -> None:
    directory, causal = tmp_path / "model", kind == "GPT2"
    settings = GPT2[1] if causal else WIDTH
    model, tokenizer = make_model(kind, "LMHeadModel" if causal else "ForMaskedLM", directory, **settings)
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    arguments = {"document": "line", "context": 10, **({} if causal else {"masked_fraction": 0.5, "masked_seed": 1})}
    data = f"text:{tmp_path / 'texts.txt'}"
    together = extract_rows(directory, tmp_path / "together", data, 64, data_arguments=arguments)
    single = extract_rows(directory, tmp_path / "single", data, 1, data_arguments=arguments)
    assert torch.equal(together["labels"], single["labels"])
    for name in ("features", "loss"):
        torch.testing.assert_close(together[name], single[name], rtol=1e-4, atol=1e-4)
    if not causal:
        return
    losses = []
    for text in (ids for ids in tokenizer(list(TEXTS))["input_ids"] if len(ids) > 1):
        for start in range(0, len(text) - 1, 10):
            with torch.inference_mode():
                logits = model(torch.tensor([text[start : start + 10]])).logits[0]
            targets = torch.tensor(text[start + 1 : start + 11])
            losses.append(F.cross_entropy(logits[: len(targets)], targets, reduction="none"))
    torch.testing.assert_close(together["loss"], torch.cat(losses), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_logits_of_sounds_equal_those_of_each_sound_alone(norm: str, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    directory = tmp_path / "model"
    config = transformers.Wav2Vec2Config(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, conv_dim=(8, 8), num_labels=2,
        conv_stride=(5, 2), conv_kernel=(10, 3), num_feat_extract_layers=2, num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2, classifier_proj_size=6, feat_extract_norm=norm,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.Wav2Vec2ForSequenceClassification(config).eval()
    model.save_pretrained(directory)
    # Models with a group norm were trained without an attention mask, so the extractor returns none for them.
    extractor = transformers.Wav2Vec2FeatureExtractor(sampling_rate=100, return_attention_mask=norm == "layer")
    extractor.save_pretrained(directory)
    draw = np.random.default_rng(0)
    waves = [draw.standard_normal(length).astype(np.float32) for length in (400, 60, 200, 90)]
    kinds = datasets.Features(
        {"wave": datasets.Sequence(datasets.Value("float32")), "label": datasets.ClassLabel(names=["a", "b"])}
    )
    datasets.Dataset.from_dict({"wave": waves, "label": [0, 1, 0, 1]}, features=kinds).save_to_disk(tmp_path / "set")
    with torch.inference_mode():
        inputs = [extractor(wave, sampling_rate=100, return_tensors="pt") for wave in waves]
        alone = torch.cat([model(**batch).logits for batch in inputs])
    together = extract_rows(directory, tmp_path / "together", f"hf-dataset:{tmp_path / 'set'}", 4)
    torch.testing.assert_close(together["logits"], alone, rtol=1e-4, atol=1e-5)
    assert together["labels"].tolist() == [0, 1, 0, 1]


def test_logits_of_images_equal_those_of_each_image_alone(tmp_path: Path) -> None:
    timm: Any = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=3)
    images = torch.rand(6, 3, 32, 32)
    model(images)  # this forward pass updates the statistics of batch norm
    torch.save(model.state_dict(), tmp_path / "a.pth")
    np.savez(tmp_path / "images.npz", x_test=images, y_test=np.arange(6) % 3)
    rows = extract_rows(
        tmp_path / "a.pth", tmp_path / "together", f"npz:{tmp_path / 'images.npz'}", 6, model="timm:test_resnet"
    )
    with torch.inference_mode():
        alone = torch.cat([model.eval()(image[None]) for image in images])
    torch.testing.assert_close(rows["logits"], alone, rtol=1e-4, atol=1e-5)
