// Choosing by expected loss (goal `error`): every cluster is attended, represented by its mean V, or dropped, whichever is the
// cheapest at one price of error against rows for all heads, layers and steps.
//
// With m = head g's share of mass in cluster c (estimated), s^2 = 2 h spread the variance of its logits and n its size, the
// expected squared error of the head's output, in units of the squared norm of V, is about
//   0                                     attended: n rows read
//   m^2 min(1, (exp(s^2) - 1) / n)        represented: the weights of n tokens scatter by exp(s^2) - 1 about their mean and
//                                         multiply values that scatter independently; kRepresentedRows rows read
//   m^2                                   dropped: nothing read
// Errors of different clusters add as squares. A price per row therefore decides each cluster by itself: no sort, no joint cut.
#pragma once

#include <cstdint>
#include <span>

#include "select/select.h"

namespace tactic {

// Rows' worth of bytes of a mean V in int8 with its scale: (d + 4) of 4 d bytes.
constexpr float kRepresentedRows = 0.27f;

// ripple [G, stride] = min(1, (exp(min(2 h spread, 5)) - 1) / size + 0.01): what representing a cluster loses of m^2. The floor
// stands for errors of the centroid itself; above an exponent of 5 the log-normal law is no guide. h null: 1. 0 in the padding.
void representation_ripple(const HeadTable& table, int group, const float* logits, const float* h, float* ripple, float softcap);

// Adds every cluster with sum_g (mass_gc / total_g)^2 ripple_gc > loss_per_row * size_c.
//   mass [G, stride], fixed [G] on the same scale; chosen [stride] 0/1 in and out; list: room for every cluster that is not
//   chosen yet; covered [G]: share of each head's total that is fixed or chosen, out
// A head whose total is not a positive finite number makes it take every cluster. Returns how many were added.
int choose_by_loss(const HeadTable& table, int group, const float* mass, const float* ripple, const float* fixed,
                   float loss_per_row, std::uint8_t* chosen, std::int32_t* list, float* covered);

// The sum over the heads of squared shares above which a dropped cluster joins the tail (choose_tail). Dropped clusters err the
// same way, each towards a smaller total, so they weigh more than independent errors: a quarter of the price of a mean V
// (docs/results/loss.md).
constexpr float represented_price(float loss_per_row) { return loss_per_row * kRepresentedRows * 0.25f; }

// The price at which goal `error` of this mass is met: see docs/results/loss.md.
float loss_per_row(float mass);

namespace reference {
void representation_ripple(const HeadTable& table, int group, const float* logits, const float* h, float* ripple, float softcap);
int choose_by_loss(const HeadTable& table, int group, const float* mass, const float* ripple, const float* fixed,
                   float loss_per_row, std::uint8_t* chosen, std::int32_t* list, float* covered);
}  // namespace reference

}  // namespace tactic
