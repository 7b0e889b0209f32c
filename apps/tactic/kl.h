// How far one next-token distribution is from another.
#pragma once

#include <cstdint>
#include <span>

namespace tactic::program {

// KL(p || q) in nats of the softmaxes of two rows of logits over the full vocabulary, in double. Same length, not empty.
double kl_divergence(std::span<const float> p_logits, std::span<const float> q_logits);

// Place of the largest logit; the lowest of equals.
std::int32_t largest(std::span<const float> logits);

}  // namespace tactic::program
