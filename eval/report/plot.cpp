// Plots as SVG text.
#include "plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace tactic::eval {
namespace {

constexpr double kWidth = 720, kHeight = 420;
constexpr double kLeft = 72, kRight = 200, kTop = 34, kBottom = 52;

// Okabe and Ito's colours: told apart by colour-blind readers, too.
constexpr const char* kColours[] = {"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00",
                                    "#56b4e9", "#7f7f7f", "#000000", "#a6761d", "#66a61e"};

struct Axis {
  double low = std::numeric_limits<double>::infinity();
  double high = -std::numeric_limits<double>::infinity();
  bool logarithmic = false;

  bool takes(double v) const { return std::isfinite(v) && (!logarithmic || v > 0); }
  void see(double v) {
    if (!takes(v)) return;
    low = std::min(low, v);
    high = std::max(high, v);
  }
  double scaled(double v) const { return logarithmic ? std::log10(v) : v; }
  void widen() {
    if (low == high) {
      low = logarithmic ? low / 2 : low - (low == 0 ? 1 : std::abs(low) / 2);
      high = logarithmic ? high * 2 : high + (high == 0 ? 1 : std::abs(high) / 2);
    }
    const double margin = 0.04 * (scaled(high) - scaled(low));
    if (logarithmic) {
      low = std::pow(10, scaled(low) - margin);
      high = std::pow(10, scaled(high) + margin);
    } else {
      // An axis that starts near zero starts at zero.
      low = low >= 0 && low < 0.4 * high ? 0 : low - margin;
      high += margin;
    }
  }
  double share(double v) const { return (scaled(v) - scaled(low)) / (scaled(high) - scaled(low)); }
};

// Beside an axis: powers of ten by their exponent where zeros would need counting.
std::string tick_label(double tick) {
  if (tick == 0 || std::abs(tick) >= 1e-3) return shown(tick);
  const int power = static_cast<int>(std::floor(std::log10(std::abs(tick)) + 1e-9));
  return fmt::format("{:.0f}e{}", tick / std::pow(10.0, power), power);
}

class Drawing {
 public:
  explicit Drawing(const Plot& plot) : plot_(plot) {
    x_.logarithmic = plot.log_x;
    y_.logarithmic = plot.log_y;
    for (const Series& series : plot.series) {
      for (std::size_t i = 0; i < series.x.size(); ++i) {
        if (!x_.takes(series.x[i]) || !y_.takes(series.y[i])) continue;
        any_ = true;
        x_.see(series.x[i]);
        y_.see(series.y[i]);
        if (i < series.low.size()) y_.see(series.low[i]);
        if (i < series.high.size()) y_.see(series.high[i]);
      }
    }
    if (!any_) return;
    x_.widen();
    y_.widen();
  }

  std::string text() {
    svg_ =
        fmt::format("<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{}\"><text x=\"{}\" y=\"20\" class=\"title\">{}</text>",
                    kWidth, kHeight, escaped(plot_.title), kLeft, escaped(plot_.title));
    if (any_) {
      axes();
      for (std::size_t i = 0; i < plot_.series.size(); ++i) draw(plot_.series[i], i);
    } else {
      svg_ += fmt::format("<text x=\"{}\" y=\"{}\">no measured point yet</text>", kLeft, kHeight / 2);
    }
    return svg_ + "</svg>";
  }

 private:
  double left(double v) const { return kLeft + x_.share(v) * (kWidth - kLeft - kRight); }
  double top(double v) const { return kHeight - kBottom - y_.share(v) * (kHeight - kTop - kBottom); }

  void axes() {
    for (const double t : ticks(x_.low, x_.high, 7, x_.logarithmic)) {
      svg_ += fmt::format(
          "<line class=\"grid\" x1=\"{0:.1f}\" x2=\"{0:.1f}\" y1=\"{1}\" y2=\"{2}\"/><text x=\"{0:.1f}\" y=\"{3}\" "
          "text-anchor=\"middle\">{4}</text>",
          left(t), kTop, kHeight - kBottom, kHeight - kBottom + 16, tick_label(t));
    }
    for (const double t : ticks(y_.low, y_.high, 6, y_.logarithmic)) {
      svg_ += fmt::format(
          "<line class=\"grid\" x1=\"{1}\" x2=\"{2}\" y1=\"{0:.1f}\" y2=\"{0:.1f}\"/><text x=\"{3}\" y=\"{4:.1f}\" "
          "text-anchor=\"end\">{5}</text>",
          top(t), kLeft, kWidth - kRight, kLeft - 6, top(t) + 4, tick_label(t));
    }
    svg_ += fmt::format("<text x=\"{:.0f}\" y=\"{}\" text-anchor=\"middle\">{}</text>", (kLeft + kWidth - kRight) / 2,
                        kHeight - 14, escaped(plot_.x_label));
    svg_ += fmt::format("<text transform=\"translate(16 {:.0f}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
                        (kTop + kHeight - kBottom) / 2, escaped(plot_.y_label));
  }

  void draw(const Series& series, std::size_t number) {
    const std::size_t wanted = series.colour < 0 ? number : static_cast<std::size_t>(series.colour);
    const char* const own = colour(wanted);
    const bool hollow = series.hollow || wanted >= std::size(kColours);
    const std::string fill = fmt::format("fill=\"{}\" stroke=\"{}\" stroke-width=\"1.6\"", hollow ? "#fff" : own, own);
    std::string path;
    std::string marks;
    for (std::size_t i = 0; i < series.x.size(); ++i) {
      if (!x_.takes(series.x[i]) || !y_.takes(series.y[i])) continue;
      const double px = left(series.x[i]);
      const double py = top(series.y[i]);
      path += fmt::format("{}{:.1f} {:.1f} ", path.empty() ? "M" : "L", px, py);
      if (i < series.low.size() && y_.takes(series.low[i]) && y_.takes(series.high[i])) {
        marks += fmt::format("<line x1=\"{0:.1f}\" x2=\"{0:.1f}\" y1=\"{1:.1f}\" y2=\"{2:.1f}\" stroke=\"{3}\"/>", px,
                             top(series.low[i]), top(series.high[i]), own);
      }
      if (!series.dots) continue;
      const std::string label = i < series.labels.size()
                                    ? series.labels[i]
                                    : fmt::format("{}: {}, {}", series.name, shown(series.x[i]), shown(series.y[i]));
      marks += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"{}\" {}><title>{}</title></circle>", px, py,
                           series.x.size() > 60 ? "1.2" : "3", fill, escaped(label));
    }
    if (series.line && !path.empty())
      svg_ += fmt::format("<path d=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"1.6\"{}/>", path, own,
                          hollow ? " stroke-dasharray=\"5 3\"" : "");
    svg_ += marks;
    const double at = kTop + 8 + 17 * static_cast<double>(number);
    svg_ += fmt::format("<rect x=\"{0}\" y=\"{1}\" width=\"9\" height=\"9\" {2}/><text x=\"{3}\" y=\"{4}\">{5}</text>",
                        kWidth - kRight + 10, at - 9, fill, kWidth - kRight + 25, at, escaped(series.name));
  }

  const Plot& plot_;
  Axis x_, y_;
  bool any_ = false;
  std::string svg_;
};

}  // namespace

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

std::string shown(double value, int digits) {
  if (!std::isfinite(value)) return "-";
  if (value == 0) return "0";
  const double size = std::abs(value);
  if (size < 1e-5 || size >= 1e7) return fmt::format("{:.{}e}", value, digits - 1);
  const int before = static_cast<int>(std::floor(std::log10(size))) + 1;
  std::string text = fmt::format("{:.{}f}", value, std::max(0, digits - before));
  if (text.find('.') != std::string::npos) {
    while (text.back() == '0') text.pop_back();
    if (text.back() == '.') text.pop_back();
  }
  return text;
}

std::vector<double> ticks(double low, double high, int wanted, bool logarithmic) {
  std::vector<double> result;
  if (logarithmic) {
    const bool wide = std::log10(high / low) > 2.5;
    for (int power = static_cast<int>(std::floor(std::log10(low))); power <= static_cast<int>(std::ceil(std::log10(high)));
         ++power) {
      for (const double factor : {1.0, 2.0, 5.0}) {
        const double tick = factor * std::pow(10.0, power);
        if (tick >= low && tick <= high && (!wide || factor == 1.0)) result.push_back(tick);
      }
    }
    return result;
  }
  const double raw = (high - low) / wanted;
  const double power = std::pow(10.0, std::floor(std::log10(raw)));
  double step = 10 * power;
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * power >= raw) {
      step = factor * power;
      break;
    }
  }
  // An integer counts the steps: adding up would let the last tick drift off.
  for (auto i = static_cast<long long>(std::ceil(low / step - 1e-9)); static_cast<double>(i) * step <= high * (1 + 1e-12); ++i)
    result.push_back(static_cast<double>(i) * step);
  return result;
}

const char* colour(std::size_t number) { return kColours[number % std::size(kColours)]; }

std::string svg_of(const Plot& plot) { return Drawing(plot).text(); }

}  // namespace tactic::eval
