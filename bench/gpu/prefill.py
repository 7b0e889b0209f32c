#!/usr/bin/env python3
"""Times the prefill of a Llama-3.1-8B-shaped decoder (bf16, random weights): one layer, times 32 layers, plus the output head's one row.

The layers are alike, so one is timed: RMSNorm, QKV, RoPE, causal attention (the faster of cuDNN's and torch's flash attention), output
projection, RMSNorm, SwiGLU. One sequence; a batch of B costs B times as much (prefill is bound by arithmetic). Columns as peers.py.

  prefill.py --csv prefill.csv --contexts 32768,65536,131072
"""
import argparse
import csv
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from peers import COLUMNS

HIDDEN, INNER, Q_HEADS, KV_HEADS, DIM, LAYERS = 4096, 14336, 32, 8, 128, 32
CHUNK = 16384  # tokens that go through the MLP at once: keeps its activations small


def weights():
    def matrix(rows, columns):
        return torch.randn(rows, columns, dtype=torch.bfloat16, device="cuda") / columns ** 0.5
    return dict(qkv=matrix((Q_HEADS + 2 * KV_HEADS) * DIM, HIDDEN), out=matrix(HIDDEN, Q_HEADS * DIM), gate_up=matrix(2 * INNER, HIDDEN),
                down=matrix(HIDDEN, INNER), norm=torch.ones(HIDDEN, dtype=torch.bfloat16, device="cuda"))


def rope(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def layer(x, w, cos, sin, backend):
    n = x.shape[0]
    qkv = F.rms_norm(x, (HIDDEN,), w["norm"]) @ w["qkv"].T
    q, k, v = qkv.view(n, Q_HEADS + 2 * KV_HEADS, DIM).split((Q_HEADS, KV_HEADS, KV_HEADS), 1)
    q, k = rope(q, cos, sin), rope(k, cos, sin)
    with sdpa_kernel([backend]):
        out = F.scaled_dot_product_attention(q.transpose(0, 1)[None], k.transpose(0, 1)[None], v.transpose(0, 1)[None], is_causal=True,
                                             enable_gqa=True)
    x = x + out[0].transpose(0, 1).reshape(n, -1) @ w["out"].T
    pieces = []
    for piece in x.split(CHUNK):
        gate, up = (F.rms_norm(piece, (HIDDEN,), w["norm"]) @ w["gate_up"].T).chunk(2, -1)
        pieces.append(piece + (F.silu(gate) * up) @ w["down"].T)
    return torch.cat(pieces)


def timed(call, reps):
    call()
    times = []
    for _ in range(reps):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) * 1e6)
    return statistics.median(times), min(times), max(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", default="prefill.csv")
    parser.add_argument("--contexts", default="32768,65536,131072")
    parser.add_argument("--reps", type=int, default=3)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("prefill.py: no GPU (torch.cuda.is_available() is false)")
    torch.manual_seed(1)
    w, rows = weights(), []
    for n in map(int, args.contexts.split(",")):
        x = torch.randn(n, HIDDEN, dtype=torch.bfloat16, device="cuda")
        angle = torch.outer(torch.arange(n, device="cuda"), 500000 ** (-torch.arange(0, DIM, 2, device="cuda") / DIM))[:, None]
        cos, sin = angle.cos().to(torch.bfloat16), angle.sin().to(torch.bfloat16)
        best = None
        for name, backend in (("cudnn", SDPBackend.CUDNN_ATTENTION), ("torch flash", SDPBackend.FLASH_ATTENTION)):
            with torch.inference_mode():
                times = timed(lambda: layer(x, w, cos, sin, backend), args.reps)
            if best is None or times[0] < best[1][0]:
                best = (name, times)
        name, (us, low, high) = best
        flops = 2 * n * HIDDEN * ((Q_HEADS + 2 * KV_HEADS) * DIM + Q_HEADS * DIM + 3 * INNER) + 2 * n * n * Q_HEADS * DIM
        rows.append(dict(what="prefill layer", variant=name, q_heads=Q_HEADS, kv_heads=KV_HEADS, head_dim=DIM, batch=1, context=n, share=1,
                         layers=1, us=f"{us:.1f}", p10=f"{low:.1f}", p90=f"{high:.1f}", bytes=0, error="",
                         note=f"{flops / us / 1e6:.0f} TFLOP/s; x {LAYERS} layers = {us * LAYERS / 1e6:.2f} s"))
        print(f"prefill layer {name:12s} {n:7d} tokens {us / 1000:8.2f} ms  {rows[-1]['note']}", flush=True)
    with open(args.csv, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
