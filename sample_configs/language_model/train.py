"""A small GPT-2 on the King James Bible, with its own tokenizer and a checkpoint at each of 45 log-spaced steps.

The text is what Debian's program `bible` prints (packages bible-kjv and bible-kjv-text; the translation of 1611 is in
the public domain). Every twentieth chapter is for testing. Text, tokenizer and, for each seed, a directory of
checkpoints are written below --out; a seed that is finished is left as it is.

Run: python sample_configs/language_model/train.py --out runs/language_model --seeds 0 1 2
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.utils.data import TensorDataset
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

VOCABULARY = 2048
CONTEXT = 128
BATCH = 8
CHECKPOINTS = 45
END = "<end>"


def main() -> None:
    """Write the text, train the tokenizer, then a model for each seed."""
    parser = argparse.ArgumentParser(description="A small GPT-2 with checkpoints.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--bible", help="The program, where it is not on the path; options may follow it.")
    parser.add_argument("--text", type=Path, help="A text whose paragraphs are the documents, in place of the Bible.")
    given = parser.parse_args()
    documents = paragraphs(given.text) if given.text else chapters(given.bible or "bible")
    training = write_texts(documents, given.out / "text")
    tokenizer = tokenizer_of(training)
    ids = torch.tensor(tokenizer.encode(END.join(training)))
    windows = ids[: len(ids) // CONTEXT * CONTEXT].view(-1, CONTEXT)
    print(f"{len(training)} documents, {len(ids):,} tokens of {len(tokenizer)}", flush=True)
    for seed in given.seeds:
        train(given.out / f"seed-{seed}", seed, tokenizer, windows, given)


def chapters(program: str) -> list[str]:
    """The chapters of the Bible, without the numbers of the verses."""
    words = [*program.split(), "-l1000000", "gen1:1-rev22:21"]
    if shutil.which(words[0]) is None:
        sys.exit(
            f"{words[0]}: no such program; install Debian's bible-kjv and bible-kjv-text, or give --bible or --text"
        )
    printed = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    found = re.split(r"^\S.* \d+$", printed, flags=re.MULTILINE)
    return [
        " ".join(re.sub(r"^ *\d+ ", "", line) for line in part.strip().split("\n")) for part in found if part.strip()
    ]


def paragraphs(file: Path) -> list[str]:
    """The blocks between blank lines of a text file."""
    return [part for part in re.split(r"\n\s*\n", file.read_text(encoding="utf-8")) if part.strip()]


def write_texts(documents: list[str], out: Path) -> list[str]:
    """One file of documents a split, as `text:` reads them; those of the training split."""
    splits = {"train": [d for i, d in enumerate(documents) if i % 20], "test": documents[::20]}
    out.mkdir(parents=True, exist_ok=True)
    for name, held in splits.items():
        lines = [json.dumps({"text": document}) + "\n" for document in held]
        (out / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return splits["train"]


def tokenizer_of(documents: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of the training split."""
    found = Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=[END], show_progress=False)
    found.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=found, eos_token=END, model_max_length=CONTEXT)


def train(
    out: Path, seed: int, tokenizer: PreTrainedTokenizerFast, windows: torch.Tensor, given: argparse.Namespace
) -> None:
    """One model: AdamW, a warm-up of a twentieth of the steps, then a cosine to zero."""
    if (out / f"checkpoint-{given.steps}").exists():
        return
    set_seed(seed)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=CONTEXT, n_embd=given.width, n_layer=given.layers, n_head=4,
        bos_token_id=0, eos_token_id=0, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    arguments = TrainingArguments(
        output_dir=str(out), max_steps=given.steps, per_device_train_batch_size=BATCH, learning_rate=2e-3,
        weight_decay=0.1, warmup_steps=given.steps // 20, lr_scheduler_type="cosine", logging_steps=50, seed=seed,
        save_strategy="no", save_only_model=True, report_to=[], use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    kept = AtLogSteps(given.steps)
    rows = TensorDataset(windows)
    trainer = Trainer(
        model, arguments, train_dataset=rows, data_collator=inputs_of, processing_class=tokenizer, callbacks=[kept]
    )
    model.save_pretrained(out / "checkpoint-0")
    tokenizer.save_pretrained(out / "checkpoint-0")
    trainer.train()


def inputs_of(rows: list[tuple[torch.Tensor]]) -> dict[str, torch.Tensor]:
    """What the model takes: the tokens, and the same as labels, which it shifts itself."""
    ids = torch.stack([row for (row,) in rows])
    return {"input_ids": ids, "labels": ids}


class AtLogSteps(TrainerCallback):
    """Saves at steps whose logarithms are about evenly spaced, the last one included."""

    def __init__(self, last: int) -> None:
        self.steps = log_steps(last, CHECKPOINTS - 1)

    def on_step_end(self, args, state, control, **kwargs):
        control.should_save = state.global_step in self.steps
        return control


def log_steps(last: int, count: int) -> set[int]:
    """`count` whole numbers from 1 to `last` (fewer where there are not so many)."""
    points = count
    while len(found := {round(last ** (i / (points - 1))) for i in range(points)}) < min(count, last):
        points += 1
    return found


if __name__ == "__main__":
    main()
