"""Tests of hints of a model, and of the directories in which its files are searched."""

from pathlib import Path

from ckpt_probe.data import ModelHints


def test_the_name_of_a_model_is_split_into_source_and_reference() -> None:
    assert (ModelHints("timm:resnet18").source, ModelHints("timm:resnet18").reference) == ("timm", "resnet18")
    assert (ModelHints("cnn").source, ModelHints().source) == ("", "")


def test_files_are_found_in_the_named_directory_beside_the_checkpoint_or_above_it(tmp_path: Path) -> None:
    run, named = tmp_path / "run", tmp_path / "named"
    for directory in (run / "checkpoint-500", named):
        directory.mkdir(parents=True)
    hints = ModelHints(f"hf:{named}", directory=run / "checkpoint-500")
    assert hints.directory_with("vocab.txt") is None
    for directory in (run, run / "checkpoint-500", named):
        (directory / "vocab.txt").write_text("")
        assert hints.directory_with("vocab.txt", "tokenizer.json") == directory
