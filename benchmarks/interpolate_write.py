"""Writing the point between two checkpoints: time and peak memory of several programs, as separate processes.

Ours (`ckpt-probe interpolate A B --alpha 0.3`); `mergekit-pytorch` with its linear method, if --mergekit has its path;
loading both with safetensors, adding and saving; and the lower limit, `cat A B > /dev/null; cp A C; sync C`. Files have
about 160 tensors of mixed sizes; all programs run in turn, --repeats times; prints the medians.

Run: python benchmarks/interpolate_write.py [--gib 1] [--dtype float32] [--mergekit PATH] [--folder DIR]
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

SMALL = """
import sys, torch
from safetensors.torch import load_file, save_file
a, b = load_file(sys.argv[1]), load_file(sys.argv[2])
save_file({name: (0.7 * a[name].float() + 0.3 * b[name].float()).to(a[name].dtype) for name in a}, sys.argv[3])
"""
CONFIG = """
merge_method: linear
models:
  - {{model: {a}, parameters: {{weight: 0.7}}}}
  - {{model: {b}, parameters: {{weight: 0.3}}}}
dtype: {dtype}
"""
FLOOR = 'cat "$1" "$2" > /dev/null; cp "$1" "$3"; sync "$3"'


def write(path: Path, dtype: str, seed: int, size: int) -> None:
    """Write a checkpoint of about 160 tensors of three sizes, `size` bytes in total."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    kind = getattr(torch, dtype)
    total = size // kind.itemsize
    unit = total // 71
    sizes = [unit, unit // 3, 1024] * 53
    sizes.append(total - sum(sizes))
    save_file({f"layer.{i}.weight": torch.randn(n).to(kind) for i, n in enumerate(sizes)}, path)


def run(words: list[str], silent: bool = True) -> tuple[float, float]:
    """Return the seconds and the peak MiB of a process."""
    started = time.perf_counter()
    child = os.fork()
    if child == 0:
        if silent:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
        os.execvp(words[0], words)
    _, status, usage = os.wait4(child, 0)
    if status:
        raise SystemExit(f"{words[0]} failed ({status})")
    return time.perf_counter() - started, usage.ru_maxrss / 1024


def sides(folder: Path, a: Path, b: Path, dtype: str, mergekit: str | None) -> dict[str, list[str]]:
    """Return the commands by name; each writes `folder`/out, a file or a directory."""
    out = str(folder / "out")
    commands = {
        "floor": ["sh", "-c", FLOOR, "sh", str(a), str(b), out],
        "ours": [sys.executable, "-m", "ckpt_probe", "interpolate", str(a), str(b), "--alpha", "0.3", "--out", out],
        "load, add, save": [sys.executable, "-c", SMALL, str(a), str(b), out],
    }
    if mergekit:
        config = folder / "mergekit.yaml"
        config.write_text(CONFIG.format(a=a, b=b, dtype=dtype))
        commands["mergekit"] = [mergekit, str(config), out]
    return commands


def measure(folder: Path, dtype: str, gib: float, repeats: int, mergekit: str | None) -> None:
    """Run all programs in turn for a dtype, and print medians."""
    paths = [folder / f"{name}.safetensors" for name in "ab"]
    # The files are written by another process, since the peak memory of a child starts at that of its parent.
    for seed, path in enumerate(paths):
        run([sys.executable, __file__, "--write", str(path), "--dtype", dtype, "--gib", str(gib), "--seed", str(seed)])
    spent: dict[str, list[tuple[float, float]]] = {}
    chosen = sides(folder, paths[0], paths[1], dtype, mergekit)
    for _ in range(repeats):
        for name, words in chosen.items():
            spent.setdefault(name, []).append(run(words))
            out = folder / "out"
            shutil.rmtree(out) if out.is_dir() else out.unlink()
    medians = {name: statistics.median(seconds for seconds, _ in runs) for name, runs in spent.items()}
    for name, runs in spent.items():
        against = f"{medians[name] / medians['ours']:5.2f} × ours   {medians[name] / medians['floor']:5.2f} × the floor"
        print(
            f"{dtype:9} {gib:g} GiB  {name:16} {medians[name]:6.2f} s   {against}   {max(p for _, p in runs):6.0f} MiB"
        )
    for path in paths:
        path.unlink()


def main() -> None:
    """Measure every dtype."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=1.0)
    parser.add_argument("--dtype", action="append")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--mergekit", default=shutil.which("mergekit-pytorch"))
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write:
        write(arguments.write, arguments.dtype[0], arguments.seed, int(arguments.gib * 2**30))
        return
    print(f"{os.cpu_count()} cores; mergekit: {arguments.mergekit or 'not found, left out'}", flush=True)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for dtype in arguments.dtype or ["float32", "bfloat16"]:
            measure(Path(folder), dtype, arguments.gib, arguments.repeats, arguments.mergekit)


if __name__ == "__main__":
    main()
