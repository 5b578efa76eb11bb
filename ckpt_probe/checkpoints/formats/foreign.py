"""What a file is that no format here opens, by its first bytes, and what to do with it."""

KNOWN = (
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, not a checkpoint (dumps of ckpt-probe end in .h5)"),
    (b"\x80", "a plain pickle, not written by torch.save: opening it could run code; if you trust it, load it and "
     "save its tensors with safetensors.torch.save_file"),
    (b"GGUF", "a GGUF file, whose weights are quantised for inference; use the checkpoint it was made from"),
    (b"\x93NUMPY", "a numpy array; save its tensors with safetensors.numpy.save_file"),
    (b"\x1f\x8b", "compressed with gzip; unpack it first"),
    (b"BZh", "compressed with bzip2; unpack it first"),
    (b"\xfd7zXZ", "compressed with xz; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd; unpack it first"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself; run: git lfs pull"),
)  # fmt: skip
"""First bytes → what the file is."""
READ = (
    "expected safetensors, a file of torch.save, a directory of torch.distributed.checkpoint, or shards with an index"
)


def what_it_is(head: bytes) -> str:
    """A sentence about a file that begins with these bytes."""
    if not head:
        return "an empty file"
    return next(
        (told for start, told in KNOWN if head.startswith(start)), f"not a checkpoint of a known format; {READ}"
    )
