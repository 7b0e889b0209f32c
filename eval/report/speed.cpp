// Measured speed in the form of Figures 10 to 12 and Table 6: rows of the GPU benchmark, or of this machine's CPU.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <tuple>

#include "report.h"

namespace tactic::eval {
namespace {

constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
constexpr int kDecoderLayers = 32;                    // of the 8B-shaped decoder that bench/gpu steps
constexpr double kOneKernel = 0.95;                   // of the stages' sum
constexpr int kOutputs[] = {256, 1024, 4096, 16384};  // tokens generated, of Figure 12

// A row of the GPU benchmark.
struct GpuRow {
  std::string what, variant, note, slice;
  int q_heads = 0, kv_heads = 0, head_dim = 0, batch = 0;
  std::int64_t context = 0;
  double share = 0, us = 0;

  auto shape() const { return std::tuple(q_heads, kv_heads, head_dim); }
  auto place() const { return std::tuple(q_heads, kv_heads, head_dim, batch, context); }
  std::string name() const { return fmt::format("{} x {}K", batch, context / 1024); }
  bool dense_peer() const { return what == "cudnn" || what == "flashinfer" || what == "torch flash"; }
};

std::vector<GpuRow> gpu_rows(const JournalContent& journal) {
  std::vector<GpuRow> rows;
  for (const Json& sample : journal.samples) {
    const Json& r = sample["result"];
    const auto number = [&](const char* name) { return r.contains(name) && r[name].is_number() ? r[name].get<double>() : 0.0; };
    const auto text = [&](const char* name) { return r.contains(name) && r[name].is_string() ? r[name].get<std::string>() : ""; };
    rows.push_back({text("what"), text("variant"), text("note"), text("slice"), static_cast<int>(number("q_heads")),
                    static_cast<int>(number("kv_heads")), static_cast<int>(number("head_dim")), static_cast<int>(number("batch")),
                    static_cast<std::int64_t>(number("context")), number("share"), number("us")});
  }
  std::stable_sort(rows.begin(), rows.end(), [](const GpuRow& a, const GpuRow& b) { return a.place() < b.place(); });
  return rows;
}

// The fastest of the rows that `wanted` takes; NaN: none.
template <class Wanted>
double fastest(const std::vector<GpuRow>& rows, const Wanted& wanted) {
  double us = kNone;
  for (const GpuRow& row : rows) {
    if (wanted(row) && !(us <= row.us)) us = row.us;
  }
  return us;
}

double dense_of(const std::vector<GpuRow>& rows, const GpuRow& at) {
  return fastest(rows, [&](const GpuRow& r) { return r.place() == at.place() && (r.dense_peer() || r.what == "tactic dense"); });
}

std::string ratio(double above, double below) {
  return std::isfinite(above / below) ? fmt::format("{:.2f}x", above / below) : "-";
}

std::string gpu_stages(const std::vector<GpuRow>& rows) {
  std::string text;
  std::map<decltype(GpuRow().shape()), std::pair<Table, std::map<int, Bars>>> by_shape;  // plots by batch
  for (const GpuRow& row : rows) {
    if (row.what != "tactic step") continue;
    const auto same = [&](const char* what) {
      return fastest(rows,
                     [&](const GpuRow& r) { return r.what == what && r.place() == row.place() && r.variant == row.variant; });
    };
    const double gather = fastest(rows, [&](const GpuRow& r) {
      return r.what == "gather limit" && r.place() == row.place() && r.note == "the rows of " + row.variant;
    });
    const double dense = dense_of(rows, row), select = same("tactic select"), attend = same("tactic attend");
    const auto shape = row.shape();
    const std::string name = fmt::format("{}/{} heads, d {}", row.q_heads, row.kv_heads, row.head_dim);
    auto [found, fresh] = by_shape.try_emplace(
        shape,
        Table({"batch x context", "pipeline", "tokens", "select", "attend", "bare gather", "step", "best dense", "over it"}),
        std::map<int, Bars>());
    found->second.first.add({row.name(), row.variant, fmt::format("{:.1f}%", 100 * row.share), shown(select), shown(attend),
                             shown(gather), shown(row.us, 4), shown(dense, 4), ratio(dense, row.us)});
    // Stages are timed alone, as kernels of their own: a step that takes clearly less than both ran as one kernel.
    const bool one = row.us < kOneKernel * (select + attend);
    const bool drawn = row.variant.find(" P=90%") != std::string::npos &&
                       (row.variant[0] == 'p' || row.variant.find("size 32") != std::string::npos);
    if (!drawn || row.context > 131072) continue;
    Bars& bars =
        found->second.second
            .try_emplace(row.batch, Bars{fmt::format("A layer's step by stage at P = 90%, batch {}, {}", row.batch, name),
                                         "microseconds a layer",
                                         {"select", "attend, merge", "one kernel"},
                                         "best dense kernel",
                                         {}})
            .first->second;
    const std::vector<double> parts = one ? std::vector<double>{0, 0, row.us} : std::vector<double>{select, attend};
    bars.bars.push_back({row.name() + ", " + (row.variant[0] == 'p' ? "paper" : "tactic"), parts, dense, ratio(dense, row.us)});
  }
  for (auto part = by_shape.rbegin(); part != by_shape.rend(); ++part) {
    const auto [q_heads, kv_heads, head_dim] = part->first;
    text += heading(fmt::format("{}/{} heads, d {}: microseconds a layer", q_heads, kv_heads, head_dim));
    for (const auto& [batch, bars] : part->second.second) text += svg_of(bars);
    text += part->second.first.html();
  }
  return text;
}

std::string gpu_union(const std::vector<GpuRow>& rows) {
  Table table({"batch x context", "P", "rows read, union", "attend", "rows read, each head", "attend", "gain"});
  Bars bars{"Attention with one list a KV head", "microseconds a layer", {"union"}, "one list a query head", {}};
  for (const GpuRow& row : rows) {
    const std::size_t cut = row.variant.find(", union");
    if (row.what != "union attend" || cut == std::string::npos) continue;
    const std::string each = row.variant.substr(0, cut) + ", each query head";
    for (const GpuRow& other : rows) {
      if (other.what != "union attend" || other.variant != each || other.place() != row.place()) continue;
      table.add({row.name(), row.variant.substr(0, cut), fmt::format("{:.2f}%", 100 * row.share), shown(row.us),
                 fmt::format("{:.2f}%", 100 * other.share), shown(other.us), ratio(other.us, row.us)});
      bars.bars.push_back({row.name() + ", " + row.variant.substr(0, cut), {row.us}, other.us, ratio(other.us, row.us)});
    }
  }
  return svg_of(bars) + table.html() + paragraph("The paper: up to 1.65x.");
}

std::string gpu_end_to_end(const std::vector<GpuRow>& rows) {
  Table table({"batch x context", "tokens out", "full step, ms", "without attention", "Tactic step, ms", "step ratio",
               "prefill, s", "clustering, s", "decoding ratio", "with prefill", "bound: free attention"});
  Plot plot{"An 8B-shaped decoder against full attention", "tokens generated", "times faster", true, false, {}};
  for (const GpuRow& row : rows) {
    if (row.what != "decoder tactic") continue;
    const auto same = [&](const char* what) {
      return fastest(rows, [&](const GpuRow& r) { return r.what == what && r.place() == row.place(); });
    };
    const double rest = same("decoder rest"), cluster = same("decoder cluster") / 1e6;
    const double peer = fastest(rows, [&](const GpuRow& r) { return r.place() == row.place() && r.dense_peer(); });
    // The fastest dense kernel decides, ours or a peer's.
    const double own = same("decoder full"), full = std::isfinite(peer) ? std::min(own, rest + kDecoderLayers * peer) : own;
    const double layer = fastest(rows, [&](const GpuRow& r) { return r.what == "prefill layer" && r.context == row.context; });
    const double prefill = layer * kDecoderLayers * row.batch / 1e6;
    Series decoding{row.name() + ": decoding, clustering", {}, {}, {}, {}, {}};
    Series whole{row.name() + ": with prefill", {}, {}, {}, {}, {}};
    decoding.colour = whole.colour = static_cast<int>(plot.series.size() / 2);
    decoding.hollow = true;
    for (const int out : kOutputs) {
      const double growth = 1 + out / 2.0 / static_cast<double>(row.context);  // of dense attention, mean over the generation
      const double dense = out * (rest + (full - rest) * growth) / 1e6, ours = out * row.us / 1e6 + cluster,
                   free = out * rest / 1e6;
      table.add({row.name(), fmt::format("{}", out), shown(full / 1000, 4), shown(rest / 1000), shown(row.us / 1000, 4),
                 ratio(full, row.us), shown(prefill), shown(cluster), ratio(dense, ours), ratio(prefill + dense, prefill + ours),
                 ratio(prefill + dense, prefill + free)});
      decoding.x.push_back(out), decoding.y.push_back(dense / ours);
      whole.x.push_back(out), whole.y.push_back((prefill + dense) / (prefill + ours));
    }
    plot.series.push_back(std::move(decoding));
    plot.series.push_back(std::move(whole));
  }
  return svg_of(plot) + table.html() + paragraph("The paper: up to 1.58x, prefill included.");
}

std::string gpu_clustering(const std::vector<GpuRow>& rows) {
  Table table({"batch x context", "pipeline", "clustering, ms a layer", "prefill, ms a layer", "share", "note"});
  for (const GpuRow& row : rows) {
    if (row.what != "clustering" || row.slice != "clustering") continue;
    const double prefill = fastest(rows, [&](const GpuRow& r) { return r.what == "prefill layer" && r.context == row.context; });
    const double share = row.us / row.batch / prefill;
    table.add({row.name(), row.variant, shown(row.us / 1000), shown(prefill / 1000, 4),
               std::isfinite(share) ? fmt::format("{:.2f}%", 100 * share) : "-", row.note});
  }
  return table.html();
}

std::string cpu_stages(const JournalContent& journal) {
  Table table({"tokens", "arm", "attended", "rank", "estimate", "union", "attend", "layer", "dense", "over it", "of the limit"});
  Bars bars{"A layer's step by stage on this machine's CPU",
            "microseconds a layer",
            {"rank", "estimate", "union", "attend"},
            "own dense kernel",
            {}};
  for (const Json& sample : journal.samples) {
    const Json& r = sample["result"];
    const auto us = [&](const char* name) { return r.value(std::string(name) + "_microseconds", kNone); };
    const std::string tokens = fmt::format("{}", sample["config"].value("context", 0)), arm = r.value("arm", "");
    const double dense = us("dense"), whole = us("tactic");
    table.add({tokens, arm, fmt::format("{:.1f}%", 100 * r.value("attended_share", kNone)), shown(us("rank")),
               shown(us("estimate")), shown(us("union")), shown(us("attend")), shown(whole, 4), shown(dense, 4),
               ratio(dense, whole), fmt::format("{:.0f}%", 100 * r.value("share_of_limit", kNone))});
    bars.bars.push_back({fmt::format("{}, {}", tokens, arm),
                         {us("rank"), us("estimate"), us("union"), us("attend")},
                         dense,
                         ratio(dense, whole)});
  }
  return svg_of(bars) + table.html();
}

std::string cpu_clustering(const JournalContent& journal) {
  Table table({"tokens", "arm", "threads", "prefill, s", "clustering, s", "share"});
  for (const Json& sample : journal.samples) {
    const Json& r = sample["result"];
    const double prefill = r.value("prefill_seconds", kNone), cluster = r.value("cluster_seconds", kNone);
    table.add({fmt::format("{}", r.value("context", 0)), r.value("arm", ""), fmt::format("{}", r.value("threads", 0)),
               shown(prefill), shown(cluster), fmt::format("{:.2f}%", 100 * cluster / prefill)});
  }
  return table.html();
}

}  // namespace

std::string speed_section(const JournalContent& journal, const Json& spec) {
  JournalContent gpu = journal, cpu = journal;
  const auto of_gpu = [](const Json& sample) { return sample["config"].value("source", "") == "gpu"; };
  std::erase_if(gpu.samples, [&](const Json& sample) { return !of_gpu(sample); });
  std::erase_if(cpu.samples, of_gpu);
  const std::string name = spec.value("name", "");
  std::string text;
  if (!gpu.samples.empty()) {
    const std::vector<GpuRow> rows = gpu_rows(gpu);
    text += name == "fig10"   ? gpu_stages(rows)
            : name == "fig11" ? gpu_union(rows)
            : name == "fig12" ? gpu_end_to_end(rows)
                              : gpu_clustering(rows);
  }
  if (!cpu.samples.empty()) text += name == "table6" ? cpu_clustering(cpu) : cpu_stages(cpu);
  Table published({"paper (Llama-3.1-8B, RTX 6000 Ada): tokens", "distances, s", "update, s", "prefill, s", "share"});
  if (name == "table6") {
    for (const auto& [tokens, row] : spec["published"].items()) {
      const double share = (row[0].get<double>() + row[1].get<double>()) / row[2].get<double>();
      published.add({tokens, row[0].dump(), row[1].dump(), row[2].dump(), fmt::format("{:.2f}%", 100 * share)});
    }
  }
  return text + published.html();
}

}  // namespace tactic::eval
