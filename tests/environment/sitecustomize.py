"""Store bytecode in tests, do not wait for the disk, and let torchvision be imported with a CPU build of torch.

Container images often set PYTHONDONTWRITEBYTECODE. Each process would then compile every module that it imports,
which takes three times as long as importing torch.

Files are written with fsync, which matters only if the machine loses power: tests kill processes, not machines.

torchvision from the package index contains kernels that need CUDA's libraries. Without these libraries it registers no
operators, and its import fails when it adds meta functions to them. If the operators are declared here without a
kernel, the import succeeds, and everything works that does not call them. Only tests may do this; the package must not.
"""

import importlib.abc
import importlib.util
import os
import sys
from pathlib import Path

sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def fsync(file):
    """Check a file descriptor, as `os.fsync` does, without waiting until its file is on the disk."""
    os.fstat(file if isinstance(file, int) else file.fileno())


os.fsync = fsync

OPERATORS = (
    "_deform_conv2d_backward",
    "_ps_roi_align_backward",
    "_ps_roi_pool_backward",
    "_roi_align_backward",
    "_roi_pool_backward",
    "deform_conv2d",
    "nms",
    "ps_roi_align",
    "ps_roi_pool",
    "qnms",
    "qroi_align",
    "roi_align",
    "roi_pool",
)
libraries = []


class BeforeTorchvision(importlib.abc.MetaPathFinder):
    """A finder that declares the operators when torchvision is first imported, so that Python itself starts fast."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname != "torchvision":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("torchvision")
        if spec is not None and spec.origin is not None and not loads(Path(spec.origin).parent):
            import torch

            library = torch.library.Library("torchvision", "FRAGMENT")
            for name in OPERATORS:
                library.define(f"{name}(Tensor x) -> Tensor")
            libraries.append(library)
        return spec


def loads(package):
    """Return whether torchvision's library of operators can be loaded with the installed torch."""
    import torch

    for library in package.glob("_C*.so"):
        try:
            torch.ops.load_library(str(library))
        except OSError:
            return False
    return True


# Compare names: a process that runs this file twice has two classes of this name.
if not any(type(finder).__name__ == BeforeTorchvision.__name__ for finder in sys.meta_path):
    sys.meta_path.insert(0, BeforeTorchvision())
