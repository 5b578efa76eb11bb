"""What a file is by its first bytes, whatever it is called."""

ZIP = b"PK\x03\x04"
"""A zip file: of torch.save since torch 1.6."""
STREAM = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The number with which torch.save began before there were archives, pickled."""

FOREIGN = (
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
"""First bytes of what is not opened → what it is, and what to do with it."""
READ = (
    "expected safetensors, a file of torch.save, a directory of torch.distributed.checkpoint, or shards with an index"
)


def is_safetensors(head: bytes) -> bool:
    """Whether a file begins as safetensors does: the length of a header, and its first brace."""
    return len(head) > 8 and head[8:9] == b"{" and head[6:8] == b"\0\0"


def what_it_is(head: bytes) -> str:
    """A sentence about a file that begins with these bytes."""
    if not head:
        return "an empty file"
    return next(
        (told for start, told in FOREIGN if head.startswith(start)), f"not a checkpoint of a known format; {READ}"
    )
