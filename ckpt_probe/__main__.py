"""`python -m ckpt_probe` is the command `ckpt-probe`."""

import sys
from pathlib import Path

if not sys.flags.safe_path:
    # `-m` puts the working directory first, where any file could stand in for a library.
    sys.path[:1] = []
    sys.path.append(str(Path(__file__).resolve().parents[1]))

from ckpt_probe.cli.app import main

main()
