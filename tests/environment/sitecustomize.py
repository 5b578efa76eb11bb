"""Only for tests: keeps compiled modules, and lets torchvision from the package index load beside a CPU build of torch.

Images of containers often have Python keep no bytecode. Then every process compiles what it imports once more, which
takes three times as long as to import torch.

That build of torchvision holds kernels that need CUDA's libraries. Without them it registers no operator, then fails
where it describes those operators to torch. Declared here without a kernel they can be described, and everything that
does not call them works. The package itself must never do this to its users.
"""

import importlib.abc
import importlib.util
import os
import sys
from pathlib import Path

sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

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
held = []


class BeforeTorchvision(importlib.abc.MetaPathFinder):
    """Declares the operators when torchvision is first imported, so that starting Python stays cheap."""

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
            held.append(library)
        return spec


def loads(package):
    """Whether torchvision's own library of operators can be loaded beside this torch."""
    import torch

    for library in package.glob("_C*.so"):
        try:
            torch.ops.load_library(str(library))
        except OSError:
            return False
    return True


# By its name: a process that runs this file twice has two such classes.
if not any(type(finder).__name__ == BeforeTorchvision.__name__ for finder in sys.meta_path):
    sys.meta_path.insert(0, BeforeTorchvision())
