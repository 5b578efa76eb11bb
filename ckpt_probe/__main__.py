"""`ckpt-probe` and `python -m ckpt_probe`: start the command line."""

import sys
from pathlib import Path


def main() -> None:
    """Run the command line and exit; an interruption while it is loaded gives one line."""
    try:
        from ckpt_probe.cli.app import main as run
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    run()


if __name__ == "__main__":
    if not sys.flags.safe_path:
        # `-m` puts the working directory first, where any file could stand in for a library.
        sys.path[:1] = []
        sys.path.append(str(Path(__file__).resolve().parents[1]))
    main()
