#!/usr/bin/env python3
"""Times the peers of one decode-attention layer on this GPU: cuDNN, torch's flash attention, FlashInfer, and FlashInfer as the paper uses it.

Every figure is microseconds a layer: a CUDA graph of one call per layer, each layer with K and V of its own, replayed after a sweep of the
L2 cache; median of --reps replays. bf16. Rows go to a CSV (columns: COLUMNS). FlashInfer is loaded without its package __init__, so of its
requirements only those of the decode path are needed (wheels flashinfer-python 0.5.3 and apache-tvm-ffi 0.1.15.post2, installed --no-deps).

  peers.py --build decode:128          builds one of FlashInfer's modules (decode or prefill, head_dim); run several side by side first
  peers.py --csv peers.csv --cells 1x32768,8x131072 --peers cudnn,flashinfer,paper
"""
import argparse
import csv
import importlib.util
import math
import statistics
import sys
import time
import types
import warnings

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

warnings.filterwarnings("ignore")

COLUMNS = ["what", "variant", "q_heads", "kv_heads", "head_dim", "batch", "context", "share", "layers", "us", "p10", "p90",
           "bytes", "error", "note"]
DTYPE, DEVICE = torch.bfloat16, "cuda"
PAGE = 16            # tokens a page of FlashInfer's full attention
MIN_BYTES = 1.3e9     # of K and V in one graph: 20 times the L2 cache
MAX_BYTES = 70e9     # of the pool that all cells cut their K and V from
TOLERANCE = 0.02     # |out - ref| / |ref| of bf16 attention; more is a wrong result and not reported as a time


def flashinfer_decode():
    spec = importlib.util.find_spec("flashinfer")
    if spec is None:
        raise RuntimeError("flashinfer is not installed")
    package = types.ModuleType("flashinfer")
    package.__path__ = list(spec.submodule_search_locations)
    package.__spec__, package.__file__ = spec, spec.origin
    sys.modules["flashinfer"] = package
    import flashinfer.decode
    return flashinfer.decode


def build(module):
    kind, dim = module.split(":")
    decode, dim, start = flashinfer_decode(), int(dim), time.time()
    if kind == "decode":
        decode.get_batch_decode_module(DTYPE, DTYPE, DTYPE, torch.int32, dim, dim, 0, False, False)
    else:
        decode.get_batch_prefill_module("fa2", DTYPE, DTYPE, DTYPE, torch.int32, dim, dim, 0, False, False, False)
    print(f"built {module} in {time.time() - start:.0f} s", flush=True)


class Timer:
    """Median microseconds a layer of a graph's replays with a cold L2."""

    def __init__(self, reps):
        self.reps = reps
        self.sweep = torch.randint(0, 1 << 30, (64 << 20,), dtype=torch.int32, device=DEVICE)  # 256 MB, only read
        self.sink = torch.empty((), dtype=torch.int32, device=DEVICE)

    def __call__(self, calls):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for call in calls:
                call()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for call in calls:
                call()
        for _ in range(2):
            graph.replay()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        times = []
        for _ in range(self.reps):
            torch.amax(self.sweep, dim=0, out=self.sink)
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) * 1000 / len(calls))
        times.sort()
        return statistics.median(times), times[len(times) // 10], times[len(times) * 9 // 10]


class Cell:
    """One shape, batch and context: K, V of all layers as flat views of a shared pool, and queries."""

    def __init__(self, pool, q_heads, kv_heads, dim, batch, context):
        self.q_heads, self.kv_heads, self.dim, self.batch, self.context = q_heads, kv_heads, dim, batch, context
        self.group = q_heads // kv_heads
        elements = batch * context * kv_heads * dim
        self.bytes = elements * 2 * 2
        self.layers = max(1, min(max(16, math.ceil(MIN_BYTES / self.bytes)), pool.numel() // 2 // elements))
        half = pool.numel() // 2
        self.k = [pool[i * elements:(i + 1) * elements] for i in range(self.layers)]
        self.v = [pool[half + i * elements:half + (i + 1) * elements] for i in range(self.layers)]
        self.q = [torch.randn(batch, q_heads, dim, dtype=DTYPE, device=DEVICE) for _ in range(self.layers)]
        self.out = [torch.empty(batch, q_heads, dim, dtype=DTYPE, device=DEVICE) for _ in range(self.layers)]
        self.scale = 1 / math.sqrt(dim)

    def attention(self, q, k, v):
        """q [kv_heads, group, dim], k, v [kv_heads, n, dim] in f32."""
        weights = (torch.einsum("hgd,hnd->hgn", q, k) * self.scale).softmax(-1)
        return torch.einsum("hgn,hnd->hgd", weights, v)


class Bench:
    def __init__(self, args):
        self.args = args
        self.timer = Timer(args.reps)
        self.rows = []
        self.pool = torch.empty(int(MAX_BYTES // 2), dtype=DTYPE, device=DEVICE)
        for part in self.pool.split(1 << 30):
            part.normal_()
        self.decode = self.workspace = None
        if {"flashinfer", "paper"} & set(args.peers):
            self.decode = flashinfer_decode()
            self.workspace = torch.zeros(256 << 20, dtype=torch.uint8, device=DEVICE)

    def row(self, cell, what, variant, times, nbytes, share=1.0, error="", note=""):
        us, p10, p90 = times
        self.rows.append(dict(what=what, variant=variant, q_heads=cell.q_heads, kv_heads=cell.kv_heads, head_dim=cell.dim,
                              batch=cell.batch, context=cell.context, share=share, layers=cell.layers, us=f"{us:.2f}",
                              p10=f"{p10:.2f}", p90=f"{p90:.2f}", bytes=int(nbytes), error=error, note=note))
        print(f"{what:12s} {variant:22s} {cell.q_heads}/{cell.kv_heads} d{cell.dim} {cell.batch:2d} x {cell.context:6d} "
              f"{share:5.3f} {us:9.2f} us  {nbytes / us / 1e6:5.2f} TB/s  {note}", flush=True)

    def measure(self, cell, what, variant, calls, nbytes, reference, result, share=1.0):
        try:
            times = self.timer(calls)
            error = ((result().float() - reference).norm() / reference.norm()).item()
            if not error < TOLERANCE:
                raise RuntimeError(f"wrong result: relative error {error:.3g}")
            self.row(cell, what, variant, times, nbytes, share, f"{error:.1e}")
        except Exception as failure:  # a peer that can't do this shape must not end the run
            torch.cuda.synchronize()
            print(f"{what} {variant} {cell.batch} x {cell.context}: {str(failure)[:200]}", flush=True)

    def sdpa(self, c):
        """Dense caches [batch, kv_heads, context, dim] and [batch, context, kv_heads, dim]."""
        for layout in ("heads first", "tokens first"):
            def view(x):
                if layout == "heads first":
                    return x.view(c.batch, c.kv_heads, c.context, c.dim)
                return x.view(c.batch, c.context, c.kv_heads, c.dim).transpose(1, 2)
            reference = c.attention(c.q[0][0].view(c.kv_heads, c.group, c.dim).float(), view(c.k[0])[0].float(),
                                    view(c.v[0])[0].float()).reshape(c.q_heads, c.dim)
            for name, backend in (("cudnn", SDPBackend.CUDNN_ATTENTION), ("torch flash", SDPBackend.FLASH_ATTENTION)):
                if name == "torch flash" and "torch" not in self.args.peers:
                    continue
                kept = {}

                def call(i):
                    with sdpa_kernel([backend]):
                        out = F.scaled_dot_product_attention(c.q[i].view(c.batch, c.q_heads, 1, c.dim), view(c.k[i]), view(c.v[i]),
                                                             enable_gqa=True)
                    if i == 0:
                        kept["out"] = out
                self.measure(c, name, layout, [lambda i=i: call(i) for i in range(c.layers)], c.bytes, reference,
                             lambda: kept["out"].reshape(c.batch, c.q_heads, c.dim)[0])

    def wrapper(self, requests, indices, tensor_cores):
        def ints(n):
            return torch.empty(n, dtype=torch.int32, device=DEVICE)
        return self.decode.BatchDecodeWithPagedKVCacheWrapper(
            self.workspace, "NHD", use_cuda_graph=True, use_tensor_cores=tensor_cores, paged_kv_indptr_buffer=ints(requests + 1),
            paged_kv_indices_buffer=ints(indices), paged_kv_last_page_len_buffer=ints(requests))

    def flashinfer_full(self, c):
        pages = c.batch * c.context // PAGE
        order = torch.randperm(pages, device=DEVICE).to(torch.int32)
        shape = (pages, PAGE, c.kv_heads, c.dim)
        mine = order[:c.context // PAGE].long()
        k, v = (x[0].view(shape)[mine].reshape(c.context, c.kv_heads, c.dim).transpose(0, 1).float() for x in (c.k, c.v))
        reference = c.attention(c.q[0][0].view(c.kv_heads, c.group, c.dim).float(), k, v).reshape(c.q_heads, c.dim)
        del k, v
        for tensor_cores in (False, True):
            w = self.wrapper(c.batch, pages, tensor_cores)
            w.plan(torch.arange(c.batch + 1, dtype=torch.int32) * (c.context // PAGE), order,
                   torch.full((c.batch,), PAGE, dtype=torch.int32), c.q_heads, c.kv_heads, c.dim, PAGE, q_data_type=DTYPE,
                   kv_data_type=DTYPE)
            self.measure(c, "flashinfer", "tensor cores" if tensor_cores else "cuda cores",
                         [lambda i=i: w.run(c.q[i], (c.k[i].view(shape), c.v[i].view(shape)), out=c.out[i]) for i in range(c.layers)],
                         c.bytes, reference, lambda: c.out[0][0])

    def paper(self, c, share):
        """Section 4.6 of the paper: a request for each KV head, pages of one token, group query heads. Tokens are chosen already,
        random and ascending; lists of one length, then of lengths that differ 10 times with the same mean."""
        requests, chosen = c.batch * c.kv_heads, round(share * c.context)
        spread = 10 ** torch.linspace(-0.5, 0.5, requests)[torch.randperm(requests)]
        uneven = (spread / spread.mean() * chosen).round().int().clamp(1, c.context)
        for lengths, kind in ((torch.full((requests,), chosen, dtype=torch.int32), "equal"), (uneven, "uneven")):
            starts = F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
            total = int(starts[-1])
            indices = []
            for _ in range(c.layers):
                rows = []
                for r in range(requests):
                    tokens = torch.randperm(c.context, device=DEVICE)[:int(lengths[r])].sort().values
                    rows.append((r // c.kv_heads * c.context + tokens) * c.kv_heads + r % c.kv_heads)
                indices.append(torch.cat(rows).to(torch.int32))
            flat = (c.batch * c.context * c.kv_heads, 1, 1, c.dim)
            first = indices[0][:int(lengths[0])].long()
            k, v = (x[0].view(-1, c.dim)[first][None].float() for x in (c.k, c.v))
            reference = c.attention(c.q[0].view(requests, c.group, c.dim)[:1].float(), k, v)[0]
            for tensor_cores in (False, True):
                w = self.wrapper(requests, total, tensor_cores)
                last = torch.ones(requests, dtype=torch.int32)

                def plan():
                    w.plan(starts, indices[0], last, c.group, 1, c.dim, 1, q_data_type=DTYPE, kv_data_type=DTYPE)
                plan()

                def call(i):
                    w._paged_kv_indices_buf = indices[i]  # one plan serves layers of equal lengths; each has its own list
                    w.run(c.q[i].view(requests, c.group, c.dim), (c.k[i].view(flat), c.v[i].view(flat)),
                          out=c.out[i].view(requests, c.group, c.dim))
                name = f"{kind}, {'tensor' if tensor_cores else 'cuda'} cores"
                self.measure(c, "paper", name, [lambda i=i: call(i) for i in range(c.layers)], total * c.dim * 4, reference,
                             lambda: c.out[0].view(requests, c.group, c.dim)[0], share)
                times = []
                for _ in range(30):
                    torch.cuda.synchronize()
                    start = time.perf_counter()
                    plan()
                    times.append((time.perf_counter() - start) * 1e6)
                times.sort()
                self.row(c, "paper plan", name, (times[15], times[3], times[27]), 0, share, note="host time, every layer and step")

    def run(self):
        for heads in self.args.shapes.split(","):
            q_heads, kv_heads, dim = map(int, heads.split("/"))
            for text in self.args.cells.split(","):
                batch, context = map(int, text.split("x"))
                c = Cell(self.pool, q_heads, kv_heads, dim, batch, context)
                if c.bytes > MAX_BYTES:
                    print(f"skipped {text}: {c.bytes / 1e9:.0f} GB a layer", flush=True)
                    continue
                if "cudnn" in self.args.peers:
                    self.sdpa(c)
                if "flashinfer" in self.args.peers:
                    self.flashinfer_full(c)
                if "paper" in self.args.peers:
                    for share in map(float, self.args.shares.split(",")):
                        self.paper(c, share)
                self.save()

    def save(self):
        with open(self.args.csv, "w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(self.rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build")
    parser.add_argument("--csv", default="peers.csv")
    parser.add_argument("--reps", type=int, default=25)
    parser.add_argument("--shapes", default="32/8/128", help="q_heads/kv_heads/head_dim, several with commas")
    parser.add_argument("--cells", default="1x8192,1x32768,1x65536,1x131072,4x32768,8x32768,8x131072", help="batch x context")
    parser.add_argument("--shares", default="0.025,0.05,0.1")
    parser.add_argument("--peers", default="cudnn,torch,flashinfer,paper")
    args = parser.parse_args()
    if args.build:
        return build(args.build)
    args.peers = args.peers.split(",")
    if not torch.cuda.is_available():
        sys.exit("peers.py: no GPU (torch.cuda.is_available() is false)")
    torch.manual_seed(1)
    print(f"# {torch.cuda.get_device_name()}, torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}", flush=True)
    return Bench(args).run()


if __name__ == "__main__":
    main()
