// The program's side of integrations/llama/control.h: loads libtactic-llama.so into the engine and talks to it.
#include "plugin.h"

#include <fmt/format.h>
#include <ggml-backend.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string_view>
#include <utility>
#include <vector>

#include "core/error.h"
#include "files.h"

namespace tactic::program {
namespace {

constexpr const char* kName = "libtactic-llama.so";

std::string library_path() {
  if (const char* named = std::getenv("TACTIC_LLAMA_LIB"); named != nullptr && *named != '\0') return named;
  std::error_code error;
  const std::filesystem::path folder = std::filesystem::read_symlink("/proc/self/exe", error).parent_path();
  const std::filesystem::path places[] = {folder / kName, folder.parent_path() / "lib" / kName,
                                          folder.parent_path() / TACTIC_LIBDIR / kName};
  for (const auto& place : places) {
    if (std::filesystem::exists(place, error)) return place.string();
  }
  return places[1].string();
}

}  // namespace

Plugin::Plugin(int threads) {
  if (const char* disabled = std::getenv("TACTIC_DISABLE");
      disabled != nullptr && *disabled != '\0' && disabled != std::string_view("0")) {
    throw Error(Status::unsupported,
                "TACTIC_DISABLE is set, so the plug-in stays out of the engine: unset it, or pass --method stock");
  }
  const std::string path = library_path();
  const char* remedy = "build it, name it in TACTIC_LLAMA_LIB, or pass --method stock";
  if (!std::filesystem::exists(path)) throw Error(Status::unsupported, fmt::format("plug-in {} is not there: {}", path, remedy));
  ggml_backend_load(path.c_str());
  const ggml_backend_reg_t registry = ggml_backend_reg_by_name("Tactic");
  void* entry = registry == nullptr ? nullptr : ggml_backend_reg_get_proc_address(registry, TACTIC_LLAMA_CONTROL);
  if (entry == nullptr) throw Error(Status::unsupported, fmt::format("plug-in {} does not fit this engine: {}", path, remedy));
  control_ = reinterpret_cast<tactic_llama_control_fn>(entry)();
  if (control_ == nullptr || control_->size < sizeof(tactic_llama_control)) {
    throw Error(Status::unsupported, fmt::format("plug-in {} is older than this program: {}", path, remedy));
  }
  if (control_->get("threads") != nullptr) set("threads", std::to_string(threads));
}

void Plugin::set(const char* name, const std::string& value) const {
  if (control_->set(name, value.c_str()) != 0) {
    throw Error(Status::invalid_argument,
                fmt::format("plug-in refuses {} = {} ({}): choose another value", name, value, control_->last_error()));
  }
}

void Plugin::use(const MethodOptions& options) {
  set("method", options.method);  // tactic and paper also choose that pipeline's values for all that is not set
  if (options.method == "stock") return;
  for (const auto& [name, value] : options.settings) set(name.c_str(), value);
  if (options.method == "full") return;
  set("mass", fmt::format("{}", options.mass));
  set("goal", options.used_goal());
  set("promise", options.promise ? "1" : "0");
  if (options.cluster_size == 0) return;
  const char* usual = control_->get("recluster_tokens");
  set("recluster_tokens", std::to_string(recluster_tokens_for(options.cluster_size, usual == nullptr ? 0 : std::atoi(usual))));
  set("cluster_size", std::to_string(options.cluster_size));
}

std::uint64_t Plugin::cluster_options() const {
  std::vector<const char*> names = {"method",        "cluster_size", "iterations",     "segment_tokens",
                                    "metric",        "shrinkage",    "int8_centroids", "seed",
                                    "outlier_share", "sink_tokens",  "recent_tokens"};
  const auto value_of = [&](const char* name) {
    const char* value = control_->get(name);
    return std::string(value == nullptr ? "" : value);
  };
  if (value_of("promise") == "1") names.insert(names.end(), {"promise", "mass"});  // the index holds margins probed for a mass
  std::uint64_t hash = 0;
  for (const char* name : names) hash = hash_text(fmt::format("{}={};", name, value_of(name)), hash);
  return hash;
}

tactic_llama_stats Plugin::stats() const {
  tactic_llama_stats stats = {};
  stats.size = sizeof stats;
  control_->read_stats(&stats);
  return stats;
}

void Plugin::save_index(const std::string& path) const {
  const std::string temporary = fmt::format("{}.{}.part", path, getpid());
  const bool saved = control_->save_index(temporary.c_str()) == 0;
  if (saved && std::rename(temporary.c_str(), path.c_str()) == 0) return;
  const std::string reason = saved ? "it could not be renamed" : control_->last_error();
  unlink(temporary.c_str());
  throw Error(Status::io,
              fmt::format("cache file {} cannot be written ({}): free some space or name another folder with --cache, "
                          "or pass --no-cache",
                          path, reason));
}

void Plugin::load_index(const std::string& path) const {
  if (control_->load_index(path.c_str()) == 0) return;
  throw Error(Status::corrupt, fmt::format("cache file {} is damaged ({}): delete it and the document is clustered again", path,
                                           control_->last_error()));
}

void Plugin::check_budget(const ModelShape& shape, std::int64_t prompt_tokens) const {
  if (control_->check_budget(shape.layers, shape.q_heads, shape.kv_heads, prompt_tokens) == 0) return;
  throw Error(Status::invalid_argument, control_->last_error());
}

void Plugin::save_budgets(const std::string& path) const {
  if (control_->save_budgets(path.c_str()) != 0) throw Error(Status::io, control_->last_error());
}

void Plugin::save_watch(const std::string& path) const {
  if (control_->save_watch(path.c_str()) != 0) {
    throw Error(Status::io,
                fmt::format("{}: free some space, name another folder with --cache, or pass --no-cache", control_->last_error()));
  }
}

void Plugin::load_watch(const std::string& path) const {
  if (control_->load_watch(path.c_str()) != 0) throw Error(Status::corrupt, control_->last_error());
}

void Plugin::watch_layers(std::function<void()> on_layer) {
  on_layer_ = std::move(on_layer);
  if (!on_layer_) {
    control_->set_trace(nullptr, nullptr, 0);
    return;
  }
  control_->set_trace([](const tactic_llama_trace*, void* self) { static_cast<Plugin*>(self)->on_layer_(); }, this, 0);
}

}  // namespace tactic::program
