"""`python -m ckpt_probe` is the command `ckpt-probe`."""

from ckpt_probe.cli.app import main

main()
