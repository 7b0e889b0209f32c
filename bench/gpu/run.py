#!/usr/bin/env python3
"""Measures Tactic on this GPU beside its limits and its peers, in one run: bench_gpu, cuDNN, FlashInfer, prefill; then tables and a plot.

  bench/gpu/run.py                       everything (some 5 minutes); results in docs/results/gpu.csv, gpu.md, gpu.png
  bench/gpu/run.py dense layers          some slices; each takes at most a minute or two
  bench/gpu/run.py --list                the slices and their commands

Slices that need a peer which is not installed say so and are left out. Peers: torch with cuDNN, and for `flashinfer` the wheels
flashinfer-python==0.5.3 and apache-tvm-ffi==0.1.15.post2 (pip install --no-deps); its kernels are compiled at first use.
"""
import argparse
import csv
import os
import pathlib
import shlex
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TABLE = "1x8192,1x32768,1x65536,1x131072,4x32768,8x32768,8x131072"
CORNERS = "1x32768,1x131072,8x32768,8x131072"
OTHERS = "32/4/128,32/8/64"  # group 8; head dim 64

# name: (command, what it answers). {bin}: bench_gpu, {here}: this folder. The CSV comes behind.
SLICES = {
    "limits": (f"{{bin}} limits --cells {TABLE},32x32768", "what the memory allows: streams, gathers"),
    "synthetic": ("{bin} synthetic --pool 20 --cells 1x8192,1x32768,1x131072", "the keys beside captured ones"),
    "dense": (f"{{here}}/peers.py --peers cudnn,torch --cells {TABLE},32x32768", "dense peers"),
    "dense-shapes": (f"{{here}}/peers.py --peers cudnn --shapes {OTHERS} --cells {CORNERS}", "dense peers at group 8 and head dim 64"),
    "flashinfer": (f"{{here}}/peers.py --peers flashinfer,paper --reps 15 --cells {CORNERS}", "FlashInfer, full and as the paper uses it"),
    "layers": (f"{{bin}} layers --cells {TABLE},32x32768", "a layer's step by stage, at wanted shares and at the paper's quality"),
    "layers-16": (f"{{bin}} layers --methods tactic --cluster-sizes 16 --cells {CORNERS}", "the same, clusters of 16 tokens"),
    "layers-64": ("{bin} layers --cluster-sizes 64 --cells 1x131072,8x131072", "the same, clusters of 64 tokens, where contexts are long"),
    "layers-shapes": (f"{{bin}} layers --methods tactic --shapes {OTHERS} --cells {CORNERS}", "the same at group 8 and head dim 64"),
    "layers-long": ("{bin} layers --cells 1x524288 --methods tactic", "the same at 512K tokens"),
    "dense-long": ("{here}/peers.py --peers cudnn --cells 1x524288", "cuDNN at 512K tokens"),
    "union": ("{bin} union --masses .7,.9 --cells 1x32768,1x131072,8x32768 --methods tactic", "one list a KV head against one a query head"),
    "clustering": ("{bin} clustering --cells 1x32768,1x65536,1x131072 --cluster-sizes 16,32", "clustering a prompt"),
    "prefill": ("{here}/prefill.py --contexts 32768,65536,131072", "prefill of an 8B-shaped decoder"),
    "end-to-end": ("{bin} end-to-end --shares .05 --cells 1x131072,8x32768,8x131072", "decoding with an 8B-shaped decoder"),
}


def build_flashinfer(environment):
    """FlashInfer's modules, side by side: some 30 s each."""
    modules = [subprocess.Popen([sys.executable, HERE / "peers.py", "--build", f"{kind}:128"], env=environment, stdout=subprocess.DEVNULL,
                                stderr=subprocess.DEVNULL) for kind in ("decode", "prefill")]
    return all(module.wait() == 0 for module in modules)


def run_slice(name, binary, folder, environment, limit):
    command = shlex.split(SLICES[name][0].format(bin=binary, here=HERE))
    if command[0].endswith(".py"):
        command.insert(0, sys.executable)
    path = folder / f"{name}.csv"
    if name != "synthetic":
        command += ["--csv", str(path)]
    start = time.time()
    print(f"== {name}: {SLICES[name][1]}\n   {' '.join(command)}", flush=True)
    try:
        status = subprocess.run(command, env=environment, timeout=limit).returncode
    except subprocess.TimeoutExpired:
        status = f"stopped after {limit} s"
    print(f"== {name}: {'done' if status == 0 else f'FAILED ({status})'} in {time.time() - start:.0f} s", flush=True)
    if not path.exists():
        return []
    with open(path) as file:
        return [dict(row, slice=name) for row in csv.DictReader(file)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slices", nargs="*", help="of --list; all by default")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--bin", default=ROOT / "build-cuda/bin/bench_gpu", help="bench_gpu (cmake --preset cuda builds it)")
    parser.add_argument("--csv", default=ROOT / "docs/results/gpu.csv", type=pathlib.Path, help="rows of other slices in it are kept")
    parser.add_argument("--limit", type=float, default=300, help="seconds a slice may take")
    args = parser.parse_args()
    if args.list:
        for name, (command, what) in SLICES.items():
            print(f"{name:14s} {what}\n{'':14s} {command.format(bin='bench_gpu', here='bench/gpu')}")
        return 0
    unknown = set(args.slices) - set(SLICES)
    if unknown:
        sys.exit(f"run.py: unknown slice {', '.join(sorted(unknown))}; --list names them")
    if not pathlib.Path(args.bin).exists():
        sys.exit(f"run.py: {args.bin} is not there: cmake --preset cuda && cmake --build --preset cuda --target bench_gpu")
    names = args.slices or list(SLICES)
    environment = dict(os.environ, PYTHONUNBUFFERED="1")
    environment.setdefault("FLASHINFER_CUDA_ARCH_LIST", "9.0a")
    environment.setdefault("CUDA_HOME", "/usr/local/cuda")
    if "flashinfer" in names and not build_flashinfer(environment):
        print("== flashinfer: not installed, or its kernels did not build: left out", flush=True)
        names.remove("flashinfer")
    folder = args.csv.parent / "raw" / "gpu"
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    if args.csv.exists():
        with open(args.csv) as file:
            rows = [row for row in csv.DictReader(file) if row["slice"] not in names]
    for name in names:
        rows += run_slice(name, args.bin, folder, environment, args.limit)
        if rows:
            with open(args.csv, "w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
    page = args.csv.with_suffix(".md")
    return subprocess.run([sys.executable, HERE / "report.py", args.csv] + ([page] if page.exists() else [])).returncode


if __name__ == "__main__":
    sys.exit(main())
