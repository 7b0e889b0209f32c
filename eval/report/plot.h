// Plots as SVG text, to stand inside a page.
#pragma once

#include <string>
#include <vector>

namespace tactic::eval {

struct Series {
  std::string name;
  std::vector<double> x;
  std::vector<double> y;
  std::vector<double> low, high;    // of an error bar at each point; empty: none
  std::vector<std::string> labels;  // shown when the pointer rests on a point; empty: x and y
  bool line = true;
  bool dots = true;
  int colour = -1;      // number of the colour; -1: the series' own number
  bool hollow = false;  // rings and a dashed line: a second series of the same colour
};

struct Plot {
  std::string title;
  std::string x_label;
  std::string y_label;
  bool log_x = false;
  bool log_y = false;
  std::vector<Series> series;  // points that are not finite, or not positive on a logarithmic axis, are left out
};

// 720 x 420 pixels, scaling with the page. A plot without any point says so.
std::string svg_of(const Plot& plot);

// Horizontal bars of stacked parts, a mark on each.
struct Bar {
  std::string name;
  std::vector<double> parts;  // lengths from the left; not finite or not positive: left out
  double mark = 0;            // where the mark stands; not finite: none
  std::string note;           // behind the bar
};
struct Bars {
  std::string title;
  std::string x_label;
  std::vector<std::string> parts;  // names, for the legend
  std::string mark_name;
  std::vector<Bar> bars;
};
std::string svg_of(const Bars& bars);

// The number-th of the plots' colours.
const char* colour(std::size_t number);

// About `wanted` round numbers (1, 2, 5 times powers of ten; powers of ten and their halves on a logarithmic axis) in [low,
// high].
std::vector<double> ticks(double low, double high, int wanted, bool logarithmic);

std::string escaped(const std::string& text);
// At most `digits` significant digits, no exponent for everyday sizes.
std::string shown(double value, int digits = 3);

}  // namespace tactic::eval
