// Progress of one stage of work: a bar with rate and time left on a terminal, plain lines elsewhere. Both on stderr.
#pragma once

#include <chrono>
#include <string>

namespace tactic::program {

using Clock = std::chrono::steady_clock;

inline double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

class Progress {
 public:
  // `total` in `unit`s; 0: not known, only the time passed is shown. `quiet` shows nothing.
  Progress(std::string what, double total, std::string unit, bool quiet = false);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void update(double done);
  // Ends the bar with a line of what was done in which time; `note` is appended to it.
  void finish(const std::string& note = "");
  double seconds() const { return seconds_since(start_); }

 private:
  void draw() const;
  std::string rate() const;

  std::string what_;
  std::string unit_;
  double total_;
  double done_ = 0;
  bool quiet_;
  bool terminal_;
  bool finished_ = false;
  Clock::time_point start_ = Clock::now();
  Clock::time_point drawn_ = Clock::now();
};

// "41 s", "2:07 min".
std::string duration(double seconds);
// "184 MB".
std::string byte_count(double bytes);

}  // namespace tactic::program
