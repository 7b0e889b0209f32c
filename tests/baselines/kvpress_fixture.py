"""Makes kvpress_fixture.h: what kvpress 0.5.5 keeps of small tensors that C++ can make bit for bit.

    python3 -m venv venv && venv/bin/pip install torch==2.4.1 transformers==4.56.2 'numpy<2.3'
    venv/bin/pip install --no-deps kvpress==0.5.5
    venv/bin/python tests/baselines/kvpress_fixture.py > tests/baselines/kvpress_fixture.h

kvpress (https://github.com/NVIDIA/kvpress) is under the Apache License 2.0; its code is run here, none of it is copied.
The presses are called with tensors, not through a model, so neither accelerate nor datasets is needed.
"""
import importlib.util
import sys
import types

import torch

# The package's __init__ imports every press and their dependencies; only its modules are needed.
package = types.ModuleType("kvpress")
package.__path__ = list(importlib.util.find_spec("kvpress").submodule_search_locations)
sys.modules["kvpress"] = package
from kvpress.presses.adakv_press import AdaKVPress  # noqa: E402
from kvpress.presses.observed_attention_press import ObservedAttentionPress  # noqa: E402
from kvpress.presses.pyramidkv_press import PyramidKVPress  # noqa: E402
from kvpress.presses.snapkv_press import SnapKVPress  # noqa: E402
from kvpress.presses.streaming_llm_press import StreamingLLMPress  # noqa: E402

TOKENS, KV_HEADS, GROUP, DIM, WINDOW = 160, 3, 3, 64, 32
Q_HEADS = KV_HEADS * GROUP


def numbers(count, seed):
    """Multiples of 1/4 in [-2, 2]: exact in f16. The generator is Knuth's MMIX."""
    state, out = seed, []
    for _ in range(count):
        state = (state * 6364136223846793005 + 1442695040888963407) % (1 << 64)
        out.append(((state >> 33) % 17 - 8) / 4)
    return torch.tensor(out, dtype=torch.float32)


class Attention(torch.nn.Module):
    """As much of a layer as the presses look at: hidden states are the queries, positions do not turn."""

    def __init__(self, layer=0, layers=1):
        super().__init__()
        self.config = types.SimpleNamespace(num_attention_heads=Q_HEADS, num_key_value_heads=KV_HEADS, num_hidden_layers=layers,
                                            _attn_implementation="sdpa")
        self.head_dim, self.layer_idx = DIM, layer
        self.q_proj = torch.nn.Identity()


queries = numbers(TOKENS * Q_HEADS * DIM, 1).view(1, TOKENS, Q_HEADS * DIM)  # [token, q_head, dim]
keys = numbers(TOKENS * KV_HEADS * DIM, 2).view(1, TOKENS, KV_HEADS, DIM).transpose(1, 2).contiguous()
places = torch.arange(TOKENS, dtype=torch.float32).view(1, 1, TOKENS, 1).expand(1, KV_HEADS, TOKENS, DIM)
rotation = {"position_embeddings": (torch.ones(1, TOKENS, DIM), torch.zeros(1, TOKENS, DIM))}


def kept(press, module=None):
    """Tokens that stay, by KV head: the values are the tokens' own numbers."""
    module = module or Attention()
    attentions = weights() if isinstance(press, ObservedAttentionPress) else None
    _, values = press.compress(module, queries, keys, places.contiguous(), attentions, rotation)
    return [sorted(int(t) for t in values[0, h, :, 0]) for h in range(KV_HEADS)]


def weights():
    q = queries.view(1, TOKENS, Q_HEADS, DIM).transpose(1, 2)
    logits = q @ keys.repeat_interleave(GROUP, dim=1).transpose(2, 3) / DIM**0.5
    return torch.softmax(logits + torch.triu(torch.full((TOKENS, TOKENS), float("-inf")), 1), dim=-1)


def ada_kept(press):
    module = Attention()
    press.compress(module, queries, keys, places.contiguous(), None, rotation)
    _, heads, tokens = module.masked_key_indices
    gone = set(zip(heads.tolist(), tokens.tolist()))
    return [[t for t in range(TOKENS) if (h, t) not in gone] for h in range(KV_HEADS)]


def clear_cut(scores, count):
    """No result hangs on rounding: the last score kept and the first one left differ by far more than f32 does."""
    ranked = scores.flatten().sort(descending=True).values
    assert ranked[count - 1] - ranked[count] > 1e-5 * ranked[count - 1], (ranked[count - 1], ranked[count])


def table(name, rows):
    print(f"inline const std::vector<std::vector<int>> {name} = {{")
    for row in rows:
        print("    {" + ", ".join(map(str, row)) + "},")
    print("};")


print("// Made by kvpress_fixture.py with kvpress 0.5.5: what it keeps. Do not edit.")
print("// clang-format off\n#pragma once\n\n#include <vector>\n\nnamespace tactic::test::kvpress {\n")
for name, value in [("kTokens", TOKENS), ("kKvHeads", KV_HEADS), ("kGroup", GROUP), ("kDim", DIM), ("kWindow", WINDOW)]:
    print(f"constexpr int {name} = {value};")
snap = SnapKVPress(compression_ratio=0.5, window_size=WINDOW, kernel_size=7)
scores = snap.score(Attention(), queries, keys, places, None, rotation)[0]
for row in scores:
    clear_cut(row, TOKENS // 2)
clear_cut(scores, KV_HEADS * TOKENS // 2)
table("kSnapKv", kept(snap))
table("kAdaSnapKv", ada_kept(AdaKVPress(SnapKVPress(compression_ratio=0.5, window_size=WINDOW, kernel_size=7))))
# A safeguard that some head needs: without it the best of all heads would leave it fewer.
table("kAdaSnapKvSafe", ada_kept(AdaKVPress(SnapKVPress(compression_ratio=0.5, window_size=WINDOW, kernel_size=7), 0.95)))
table("kStreamingLlm", kept(StreamingLLMPress(compression_ratio=0.75, n_sink=4)))

# Its scores are means over the queries that see a token; times their number they are sums.
observed = ObservedAttentionPress(compression_ratio=0.5).score(Attention(), queries, keys, places, weights(), {})[0]
sums = observed * torch.arange(TOKENS, 0, -1)
table("kMillionthsOfColumns", [[round(1e6 * float(x)) for x in row] for row in sums])

# Layer budgets: prompt, capacity beside the window, layers, then a budget for each layer. Its smallest is B / beta unrounded
# (floored in PyramidKV's own code), so only multiples of beta are asked for; its fallback for short prompts is not.
rows = []
for prompt, share, layers in [(4000, 0.2, 30), (8000, 0.1, 24), (2000, 0.4, 16), (1500, 0.48, 12), (6400, 0.125, 2), (1400, 4 / 7, 8)]:
    press = PyramidKVPress(compression_ratio=1 - share, window_size=WINDOW, kernel_size=7)
    rows.append([prompt, round(prompt * share), layers] + [press.get_layer_budget(Attention(i, layers), prompt) for i in range(layers)])
table("kPyramid", rows)
print("\n}  // namespace tactic::test::kvpress")
