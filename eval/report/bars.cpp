// Stacked bars as SVG text.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "plot.h"

namespace tactic::eval {
namespace {

constexpr double kBarWidth = 560, kBarHeight = 18, kNames = 250, kTitle = 34, kFoot = 44, kLegend = 20;

double length_of(const Bar& bar) {
  double sum = 0;
  for (const double part : bar.parts) sum += std::isfinite(part) ? std::max(0.0, part) : 0;
  return sum;
}

}  // namespace

std::string svg_of(const Bars& bars) {
  double longest = 0;
  for (const Bar& bar : bars.bars) {
    longest = std::max(longest, length_of(bar));
    if (std::isfinite(bar.mark)) longest = std::max(longest, bar.mark);
  }
  const double height = kTitle + kLegend + kBarHeight * static_cast<double>(bars.bars.size()) + kFoot;
  const double width = kNames + kBarWidth + 60;
  std::string svg =
      fmt::format("<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{}\"><text x=\"8\" y=\"20\" class=\"title\">{}</text>",
                  width, height, escaped(bars.title), escaped(bars.title));
  if (longest <= 0) return svg + fmt::format("<text x=\"8\" y=\"{}\">no measured bar yet</text></svg>", kTitle + 14);
  const double top = kTitle + kLegend, bottom = height - kFoot;
  const auto across = [&](double v) { return kNames + v / longest * kBarWidth; };
  double legend = kNames;
  for (std::size_t i = 0; i <= bars.parts.size(); ++i) {
    const bool mark = i == bars.parts.size();
    const std::string& name = mark ? bars.mark_name : bars.parts[i];
    if (name.empty()) continue;
    svg +=
        fmt::format("<rect x=\"{:.1f}\" y=\"{}\" width=\"{}\" height=\"10\" fill=\"{}\"/><text x=\"{:.1f}\" y=\"{}\">{}</text>",
                    legend, kTitle - 3, mark ? 3 : 10, mark ? "#000" : colour(i), legend + 15, kTitle + 6, escaped(name));
    legend += 35 + 6.5 * static_cast<double>(name.size());
  }
  for (const double t : ticks(0, longest, 8, false)) {
    svg += fmt::format(
        "<line class=\"grid\" x1=\"{0:.1f}\" x2=\"{0:.1f}\" y1=\"{1}\" y2=\"{2}\"/><text x=\"{0:.1f}\" y=\"{3}\" "
        "text-anchor=\"middle\">{4}</text>",
        across(t), top, bottom, bottom + 16, shown(t));
  }
  svg += fmt::format("<text x=\"{:.0f}\" y=\"{}\" text-anchor=\"middle\">{}</text>", kNames + kBarWidth / 2, height - 10,
                     escaped(bars.x_label));
  for (std::size_t i = 0; i < bars.bars.size(); ++i) {
    const Bar& bar = bars.bars[i];
    const double y = top + kBarHeight * static_cast<double>(i);
    svg += fmt::format("<text x=\"{}\" y=\"{:.1f}\" text-anchor=\"end\">{}</text>", kNames - 6, y + 13, escaped(bar.name));
    double at = 0;
    for (std::size_t p = 0; p < bar.parts.size(); ++p) {
      const double part = bar.parts[p];
      if (!std::isfinite(part) || part <= 0) continue;
      svg += fmt::format("<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{}\" fill=\"{}\"><title>{}</title></rect>",
                         across(at), y + 2, across(at + part) - across(at), kBarHeight - 5, colour(p),
                         escaped(fmt::format("{}: {} {}", bar.name, p < bars.parts.size() ? bars.parts[p] : "", shown(part))));
      at += part;
    }
    if (std::isfinite(bar.mark)) {
      svg += fmt::format("<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"3\" height=\"{}\"><title>{}</title></rect>",
                         across(bar.mark) - 1.5, y, kBarHeight - 1,
                         escaped(fmt::format("{}: {} {}", bar.name, bars.mark_name, shown(bar.mark))));
    }
    if (!bar.note.empty())
      svg += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\">{}</text>",
                         across(std::max(at, std::isfinite(bar.mark) ? bar.mark : 0.0)) + 6, y + 13, escaped(bar.note));
  }
  return svg + "</svg>";
}

}  // namespace tactic::eval
