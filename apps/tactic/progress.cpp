// Progress of one stage of work: a bar with rate and time left on a terminal, plain lines elsewhere. Both on stderr.
#include "progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <utility>

namespace tactic::program {
namespace {

constexpr double kRedraw = 0.1;      // seconds between two drawings of a bar
constexpr double kPlainLine = 10.0;  // seconds between two lines where there is no terminal
constexpr int kBarWidth = 28;

}  // namespace

std::string duration(double seconds) {
  if (seconds < 10) return fmt::format("{:.1f} s", seconds);
  if (seconds < 100) return fmt::format("{:.0f} s", seconds);
  const int whole = static_cast<int>(seconds + 0.5);
  return fmt::format("{}:{:02} min", whole / 60, whole % 60);
}

std::string byte_count(double bytes) {
  if (bytes >= 1e9) return fmt::format("{:.1f} GB", bytes / 1e9);
  if (bytes >= 1e6) return fmt::format("{:.0f} MB", bytes / 1e6);
  return fmt::format("{:.0f} kB", bytes / 1e3);
}

Progress::Progress(std::string what, double total, std::string unit, bool quiet)
    : what_(std::move(what)), unit_(std::move(unit)), total_(total), quiet_(quiet), terminal_(isatty(STDERR_FILENO) == 1) {
  if (!quiet_ && terminal_) draw();
}

Progress::~Progress() {
  if (!finished_ && !quiet_ && terminal_) fmt::print(stderr, "\r\033[K");
}

std::string Progress::rate() const {
  const double elapsed = seconds();
  if (unit_.empty() || elapsed <= 0 || done_ <= 0) return "";
  return fmt::format("{:.{}f} {}/s", done_ / elapsed, done_ / elapsed < 100 ? 1 : 0, unit_);
}

void Progress::draw() const {
  if (total_ <= 0) {
    fmt::print(stderr, "\r\033[K{} {}", what_, duration(seconds()));
  } else {
    const double share = std::clamp(done_ / total_, 0.0, 1.0);
    const int filled = static_cast<int>(share * kBarWidth);
    const std::string left = share > 0.01 ? duration(seconds() * (1 - share) / share) + " left" : "";
    fmt::print(stderr, "\r\033[K{} [{}{}] {:3.0f}%  {}  {}", what_, std::string(static_cast<std::size_t>(filled), '#'),
               std::string(static_cast<std::size_t>(kBarWidth - filled), '.'), 100 * share, rate(), left);
  }
  std::fflush(stderr);
}

void Progress::update(double done) {
  done_ = done;
  if (quiet_ || seconds_since(drawn_) < (terminal_ ? kRedraw : kPlainLine)) return;
  drawn_ = Clock::now();
  if (terminal_) {
    draw();
  } else {
    fmt::print(stderr, "{}: {:.0f} of {:.0f} {} after {}\n", what_, done_, total_, unit_, duration(seconds()));
  }
}

void Progress::finish(const std::string& note) {
  if (finished_) return;
  finished_ = true;
  if (quiet_) return;
  const std::string amount = unit_.empty() || done_ <= 0 ? "" : fmt::format("{:.0f} {} in ", done_, unit_);
  const std::string speed = rate().empty() ? "" : ", " + rate();
  fmt::print(stderr, "{}{}: {}{}{}{}\n", terminal_ ? "\r\033[K" : "", what_, amount, duration(seconds()), speed, note);
}

}  // namespace tactic::program
