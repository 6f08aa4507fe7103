"""What each arm is, in the words of the report page."""

from __future__ import annotations

ARMS = {
    "projected": "W is the parameter itself, set to zero where a step made it negative",
    "softplus": "W = log(1 + e^v) with a free parameter v",
    "softplus-fan-in": "the same, divided by the layer's number of inputs",
    "squared": "W = v² / 4 with a free parameter v",
    "lift": "W = softplus(b + R s), where s is a summary of the training batch that a small network "
    "computes; b, R and that network are trained",
    "lift-reference": "the lift as in the method's reference code, which emits every parameter of the "
    "network and starts from scattered weights of its own",
    "softplus-scattered": "softplus from the very network that lift-reference starts at",
    "softplus-multiplied": "softplus whose latent weights are given the rate times the lift's step "
    "amplification",
}
CONTROLS = ("lift-reference", "softplus-scattered", "softplus-multiplied")
ABLATIONS = {
    "lift-no-slack": "b is held at its start and not trained",
    "lift-constant": "a learned constant stands in place of the summary s: no batch is read",
    "lift-independent": "s is the summary of another batch than the one whose loss is differentiated",
    "lift-noise": "s is drawn from a normal law with the running mean and covariance of the summaries, so "
    "that the network that computes them learns nothing",
    "lift-fixed-batch": "s is the summary of the same training rows at every step: as many trained "
    "parameters as the lift, and nothing is random",
}
