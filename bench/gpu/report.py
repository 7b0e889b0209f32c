#!/usr/bin/env python3
"""Tables and the plot of run.py's results.

  report.py docs/results/gpu.csv                             prints Markdown, writes gpu.png beside the CSV
  report.py docs/results/gpu.csv docs/results/gpu.md         also puts the tables between the two marks in that page
"""
import collections
import contextlib
import csv
import io
import pathlib
import sys

DENSE = ("cudnn", "torch flash", "flashinfer")
ONE_KERNEL = 0.95  # a step that takes less of its stages' sum, timed alone as kernels of their own, ran as one kernel
ONE_KERNEL_HEADS = 64  # KV heads of a batch, at most (docs/gpu.md); above, two kernels overlap
OUTPUTS = (256, 1024, 4096, 16384)  # tokens generated, of the end-to-end table
LAYERS = 32
GOALS = (((1, 32768), "5%", 3), ((1, 131072), "5%", 6.5), ((8, 32768), "5%", 8), ((8, 131072), "5%", 12), ((8, 131072), "2.5%", 17),
         ((1, 131072), "equal", 7.29), ((8, 131072), "equal", 15))  # times faster than the best dense kernel; at a share, or at the paper's quality


def load(path):
    rows = []
    for row in csv.DictReader(open(path)):
        for key in ("q_heads", "kv_heads", "head_dim", "batch", "context", "layers"):
            row[key] = int(row[key])
        for key in ("us", "share", "bytes"):
            row[key] = float(row[key])
        row["shape"] = (row["q_heads"], row["kv_heads"], row["head_dim"])
        row["cell"] = (row["batch"], row["context"])
        rows.append(row)
    return rows


def best(rows, what, **where):
    """The fastest row of these kinds at a place."""
    found = [r for r in rows if r["what"] in what and all(r[k] == v for k, v in where.items())]
    return min(found, key=lambda r: r["us"], default=None)


def name_of(cell):
    return f"{cell[0]}, {cell[1] // 1024}K"


def table(head, lines):
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for line in lines:
        print("| " + " | ".join(str(x) for x in line) + " |")
    print()


def us(row):
    return f"{row['us']:.1f}" if row else "-"


def dense_table(rows, shape):
    cells = sorted({r["cell"] for r in rows if r["shape"] == shape and r["what"] in DENSE + ("tactic dense", "stream limit")})
    lines = []
    for cell in cells:
        at = dict(shape=shape, cell=cell)
        peer, own = best(rows, DENSE, **at), best(rows, ("tactic dense",), **at)
        ratio = f"{own['us'] / peer['us']:.2f}" if peer and own else "-"
        lines.append([name_of(cell), us(best(rows, ("stream limit",), **at)), us(best(rows, ("cudnn",), **at)), us(best(rows, ("torch flash",), **at)),
                      us(best(rows, ("flashinfer",), **at)), us(own), ratio])
    if lines:
        print(f"### Dense, {shape[0]}/{shape[1]} heads, d {shape[2]}, microseconds a layer\n")
        table(["batch, context", "stream limit", "cuDNN", "torch flash", "FlashInfer", "ours", "ours / best"], lines)


def paper_table(rows, shape):
    lines = []
    for r in sorted((r for r in rows if r["what"] == "paper" and r["shape"] == shape), key=lambda r: (r["cell"], r["share"], r["us"])):
        at = dict(shape=shape, cell=r["cell"], share=r["share"])
        same = [x for x in rows if x["what"] == "paper" and all(x[k] == v for k, v in at.items()) and x["variant"][:5] == r["variant"][:5]]  # "equal" or "uneve"
        if r is not min(same, key=lambda x: x["us"]):
            continue
        plan, dense = best(rows, ("paper plan",), variant=r["variant"], **at), best(rows, DENSE, shape=shape, cell=r["cell"])
        lines.append([name_of(r["cell"]), f"{r['share']:.1%}", r["variant"], us(r), f"{dense['us'] / r['us']:.2f}x" if dense else "-", us(plan),
                      f"{dense['us'] / (r['us'] + plan['us']):.2f}x" if dense and plan else "-"])
    if lines:
        print("### FlashInfer in the paper's arrangement (tokens chosen already), and its planning on the host, microseconds a layer\n")
        table(["batch, context", "share", "lists", "attention", "over best dense", "plan()", "over best dense, planned"], lines)


def steps_table(rows, shape):
    lines = []
    for r in (r for r in rows if r["what"] == "tactic step" and r["shape"] == shape):
        at = dict(shape=shape, cell=r["cell"], variant=r["variant"])
        same = dict(shape=shape, cell=r["cell"], note="the rows of " + r["variant"])
        dense, gather = best(rows, DENSE + ("tactic dense",), shape=shape, cell=r["cell"]), best(rows, ("gather limit",), **same)
        ratio = f"{dense['us'] / r['us']:.2f}x" + ("" if dense["what"] != "tactic dense" else " (own)") if dense else "-"
        lines.append([name_of(r["cell"]), r["variant"], f"{r['share']:.2%}", us(best(rows, ("tactic select",), **at)),
                      us(best(rows, ("tactic attend",), **at)), us(gather), us(best(rows, ("step floor",), **same)), f"**{us(r)}**", ratio, f"{float(r['error']):.4f}"])
    if lines:
        print(f"### Tactic, {shape[0]}/{shape[1]} heads, d {shape[2]}, microseconds a layer\n")
        table(["batch, context", "pipeline", "listed", "select", "attend", "bare gather", "floor", "step", "over best dense", "error"], lines)


def goals_table(rows):
    lines = []
    for cell, kind, goal in GOALS:
        # At a wanted share the default's size counts, as larger clusters would err more; at equal error any size may win.
        wanted = (lambda v: "equal" in v) if kind == "equal" else (lambda v: v.startswith(f"tactic at {kind}, size 32"))
        steps = [r for r in rows if r["what"] == "tactic step" and r["shape"] == (32, 8, 128) and r["cell"] == cell and wanted(r["variant"])]
        dense = best(rows, DENSE, shape=(32, 8, 128), cell=cell)
        if steps and dense:
            step = min(steps, key=lambda r: r["us"])
            lines.append([name_of(cell), "quality of the paper's P = 90%" if kind == "equal" else f"{kind} listed", step["variant"], us(dense), us(step),
                          f"{goal}x", f"**{dense['us'] / step['us']:.2f}x**"])
    if lines:
        print("### A whole layer over the best dense kernel of the run\n")
        table(["batch, context", "at", "pipeline", "dense", "Tactic", "goal", "reached"], lines)


def union_table(rows):
    lines = []
    for r in (r for r in rows if r["what"] == "union attend" and "union" in r["variant"]):
        each = best(rows, ("union attend",), cell=r["cell"], shape=r["shape"], variant=r["variant"].replace("union", "each query head"))
        if each:
            lines.append([name_of(r["cell"]), r["variant"], f"{r['share']:.2%}", us(r), f"{each['share']:.2%}", us(each), f"{each['us'] / r['us']:.2f}x"])
    if lines:
        print("### One list for the group against one for each query head (paper Fig. 11: up to 1.65x)\n")
        table(["batch, context", "pipeline", "rows read", "attend", "rows read, each", "attend, each", "gain"], lines)


def clustering_table(rows):
    lines = []
    for r in (r for r in rows if r["what"] == "clustering" and r["slice"] == "clustering"):
        prefill = best(rows, ("prefill layer",), context=r["context"])
        share = f"{r['us'] / r['batch'] / prefill['us']:.2%}" if prefill else "-"
        lines.append([name_of(r["cell"]), r["variant"], f"{r['us'] / 1000:.2f}", f"{prefill['us'] / 1000:.1f}" if prefill else "-", share, r["note"]])
    if lines:
        print("### Clustering beside the prefill of an 8B-shaped decoder, milliseconds a layer (paper Table 6: below 6%)\n")
        table(["batch, context", "pipeline", "clustering", "prefill", "share", "note"], lines)


def end_to_end(rows):
    """Seconds of prefill, clustering and decoding for each output length; the dense step grows with the length."""
    results = []
    for r in (r for r in rows if r["what"] == "decoder tactic"):
        full, rest = best(rows, ("decoder full",), cell=r["cell"]), best(rows, ("decoder rest",), cell=r["cell"])
        cluster, layer = best(rows, ("decoder cluster",), cell=r["cell"]), best(rows, ("prefill layer",), context=r["context"])
        if not (full and rest and cluster):
            continue
        prefill = layer["us"] * LAYERS * r["batch"] / 1e6 if layer else None
        peer = best(rows, DENSE, shape=r["shape"], cell=r["cell"])
        if peer:  # the fastest dense kernel decides, ours or a peer's
            full = dict(full, us=min(full["us"], rest["us"] + LAYERS * peer["us"]))
        for out in OUTPUTS:
            growth = 1 + out / 2 / r["context"]  # of dense attention, mean over the generation
            dense = out * (rest["us"] + (full["us"] - rest["us"]) * growth) / 1e6
            ours = out * r["us"] / 1e6 + cluster["us"] / 1e6
            results.append(dict(cell=r["cell"], out=out, prefill=prefill, cluster=cluster["us"] / 1e6, dense=dense, ours=ours, full=full, rest=rest, step=r))
    return results


def end_to_end_table(rows):
    lines = []
    for e in end_to_end(rows):
        whole = "-" if e["prefill"] is None else f"{(e['prefill'] + e['dense']) / (e['prefill'] + e['ours']):.2f}x"
        bound = "-" if e["prefill"] is None else f"{(e['prefill'] + e['dense']) / (e['prefill'] + e['out'] * e['rest']['us'] / 1e6):.2f}x"
        lines.append([name_of(e["cell"]), e["out"], f"{e['full']['us'] / 1000:.2f}", f"{e['rest']['us'] / 1000:.2f}", f"{e['step']['us'] / 1000:.2f}",
                      f"{e['full']['us'] / e['step']['us']:.2f}x", "-" if e["prefill"] is None else f"{e['prefill']:.1f}", f"{e['cluster']:.2f}",
                      f"{e['dense'] / e['ours']:.2f}x", whole, bound])
    if lines:
        print("### An 8B-shaped decoder (paper Fig. 12: up to 1.58x)\n")
        table(["batch, context", "output", "full step ms", "without attention", "Tactic step ms", "step ratio", "prefill s", "clustering s",
               "decoding ratio", "with prefill", "bound: free attention"], lines)


def plot(rows, path):
    try:
        import matplotlib
        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        print("report.py: no matplotlib, no plot", file=sys.stderr)
        return
    figure, axes = plt.subplots(2, 2, figsize=(13, 9))
    shape = (32, 8, 128)
    cells = sorted({r["cell"] for r in rows if r["what"] == "tactic step" and r["shape"] == shape})
    series = collections.defaultdict(dict)
    for cell in cells:
        dense = best(rows, DENSE + ("tactic dense",), shape=shape, cell=cell)
        for r in (r for r in rows if r["what"] == "tactic step" and r["shape"] == shape and r["cell"] == cell and "size 32" in r["variant"]):
            key = "tactic at the paper's quality" if "equal" in r["variant"] else r["variant"].split(", size")[0]
            series[key][cell] = dense["us"] / r["us"]
    for key, points in sorted(series.items()):
        axes[0][0].plot([name_of(c) for c in cells if c in points], [points[c] for c in cells if c in points], marker="o", label=key)
    axes[0][0].set_title("A layer's decode step over the best dense kernel"), axes[0][0].set_ylabel("times faster"), axes[0][0].legend(fontsize=7)
    labels, select, attend, whole, dense_us = [], [], [], [], []
    for cell in cells:
        r = next((r for r in rows if r["what"] == "tactic step" and r["shape"] == shape and r["cell"] == cell and "at 5%" in r["variant"]), None)
        if r is None:
            continue
        at = dict(shape=shape, cell=cell, variant=r["variant"])
        stages = best(rows, ("tactic select",), **at), best(rows, ("tactic attend",), **at)
        if all(stages):
            one = r["us"] < ONE_KERNEL * (stages[0]["us"] + stages[1]["us"]) and cell[0] * shape[1] <= ONE_KERNEL_HEADS
            labels.append(name_of(cell)), select.append(0 if one else stages[0]["us"]), attend.append(0 if one else stages[1]["us"])
            whole.append(r["us"] if one else 0)
            dense_us.append(best(rows, DENSE + ("tactic dense",), shape=shape, cell=cell)["us"])
    axes[0][1].bar(labels, select, label="select"), axes[0][1].bar(labels, attend, bottom=select, label="attend, merge")
    axes[0][1].bar(labels, whole, label="one kernel")
    axes[0][1].plot(labels, dense_us, "k_", markersize=25, label="best dense"), axes[0][1].set_yscale("log"), axes[0][1].set_ylim(bottom=3)
    axes[0][1].tick_params(axis="x", labelsize=8)
    axes[0][1].set_title("Stages at 5% listed (paper Fig. 10)"), axes[0][1].set_ylabel("microseconds a layer"), axes[0][1].legend(fontsize=7)
    union = [r for r in rows if r["what"] == "union attend"]
    for kind in ("union", "each query head"):
        chosen = [r for r in union if kind in r["variant"]]
        axes[1][0].plot([f"{name_of(r['cell'])}\n{r['variant'].split(',')[0]}" for r in chosen], [r["us"] for r in chosen], marker="o", label=kind)
    axes[1][0].set_title("Attention with one list a KV head, or one a query head (Fig. 11)"), axes[1][0].set_ylabel("microseconds a layer")
    axes[1][0].tick_params(axis="x", labelsize=7), axes[1][0].legend(fontsize=7)
    decoded = collections.defaultdict(list)
    for e in end_to_end(rows):
        decoded[e["cell"]].append(e)
    for cell, points in decoded.items():
        outs = [e["out"] for e in points]
        line, = axes[1][1].plot(outs, [e["dense"] / e["ours"] for e in points], "--", label=f"{name_of(cell)}: decoding and clustering")
        if points[0]["prefill"] is not None:
            axes[1][1].plot(outs, [(e["prefill"] + e["dense"]) / (e["prefill"] + e["ours"]) for e in points], marker="o", color=line.get_color(),
                            label=f"{name_of(cell)}: with prefill")
    axes[1][1].set_xscale("log", base=2), axes[1][1].set_xlabel("tokens generated"), axes[1][1].set_ylabel("times faster")
    axes[1][1].set_title("8B-shaped decoder, end to end (Fig. 12)"), axes[1][1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


MARKS = "<!-- tables: made by bench/gpu/report.py -->", "<!-- end of the tables -->"


def print_tables(rows):
    goals_table(rows)
    end_to_end_table(rows)
    for shape in sorted({r["shape"] for r in rows if r["q_heads"]}, key=lambda s: (s != (32, 8, 128), s)):
        dense_table(rows, shape)
        steps_table(rows, shape)
    clustering_table(rows)
    union_table(rows)
    paper_table(rows, (32, 8, 128))


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    path = pathlib.Path(sys.argv[1])
    rows = load(path)
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        print_tables(rows)
    print(text.getvalue())
    if len(sys.argv) == 3:
        page = pathlib.Path(sys.argv[2])
        before, _, rest = page.read_text().partition(MARKS[0])
        page.write_text(f"{before}{MARKS[0]}\n\n{text.getvalue().strip()}\n\n{MARKS[1]}{rest.partition(MARKS[1])[2]}")
    plot(rows, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
