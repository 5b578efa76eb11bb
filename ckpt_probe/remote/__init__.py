"""Addresses → paths that read remote files, by fsspec and huggingface_hub; the only code that uses a network."""

from ckpt_probe.remote.paths import RemotePath, local_data, local_texts, resolve
