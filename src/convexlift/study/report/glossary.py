"""The words of the report page that a newcomer may not know."""

from __future__ import annotations

from collections.abc import Mapping

ARMS = {
    "projected": "W is the parameter itself, set to zero where a step made it negative",
    "softplus": "W = log(1 + e^v) with a free parameter v",
    "softplus-fan-in": "the same, divided by the layer's number of inputs",
    "squared": "W = v² / 4 with a free parameter v",
    "lift": (
        "W = softplus(b + R s), where s is a summary of the training batch that a small network "
        "computes; b, R and that network are trained"
    ),
    "lift-reference": (
        "the lift as in the method's reference code, which emits every parameter of the network and "
        "starts from scattered weights of its own"
    ),
    "softplus-scattered": "softplus from the very network that lift-reference starts at",
    "softplus-multiplied": (
        "softplus whose latent weights are given the rate times the lift's step amplification"
    ),
}
CONTROLS = ("lift-reference", "softplus-scattered", "softplus-multiplied")
ABLATIONS = {
    "lift-no-slack": "b is held at its start and not trained",
    "lift-constant": "a learned constant stands in place of the summary s: no batch is read",
    "lift-independent": "s is the summary of another batch than the one whose loss is differentiated",
    "lift-noise": (
        "s is drawn from a normal law with the running mean and covariance of the summaries, so that the "
        "network that computes them learns nothing"
    ),
    "lift-fixed-batch": (
        "s is the summary of the same training rows at every step: as many trained parameters as the lift, "
        "and nothing is random"
    ),
}

_TERMS = {
    "Frozen": "one fixed convex function: every weight was settled before the test rows were seen.",
    "Difference": (
        "paired by seed, with a 95 % t-interval over seeds. Against the lift it is widened by what "
        "the noisy choice of rates adds, and a second interval resamples the test rows. It is called "
        "clear when these intervals leave out zero, else a tie. Nothing is corrected for the number "
        "of arms."
    ),
    "Half the steps (half budget)": (
        "separate runs of half the steps, with a schedule of their own, at the same rate."
    ),
    "Equal time (equal seconds)": (
        "the loss at the moment when the fastest arm ends its run, so that a slower arm has done fewer steps."
    ),
    "On the shoulder": (
        "the share of weights at which softplus or square is so flat that the gradient is damped at "
        "least twentyfold: there a weight hardly moves. A projected weight is never there."
    ),
    "Emission noise": (
        "how much a weight of the lift differs from batch to batch: standard deviation over mean, the "
        "median over weights. Below 0.1 % the lift is deterministic in effect. Its end is just before "
        "the weights settle."
    ),
    "Step amplification": (
        "how many times farther one Adam step moves a latent weight of the lift than it would move a "
        "direct parameter at the same rate."
    ),
    "fan-in × W": (
        "a weight times its layer's number of inputs, which can be compared across widths; the median "
        "over weights."
    ),
    "Relative speed": (
        "the relative change of a weight for a unit change of its latent (the parameter that it is "
        "computed from); the median. A dash: not finite, for weights at zero."
    ),
}


def glossary() -> str:
    """The last section of the page."""
    terms = "".join(f"<dt>{term}</dt><dd>{told[0].upper()}{told[1:]}</dd>" for term, told in _TERMS.items())
    return f"""<section id="terms"><h2>How to read this page</h2>
<p>An arm is a way of keeping the constrained weights W of an input-convex network at or above zero. All arms
share one architecture, the same effective initial network (except lift-reference and softplus-scattered), the
optimiser, the schedule and one grid of learning rates. Each is given the rate that does best on validation
rows, over seeds that are not scored.</p>
<dl class="answers terms">{terms}</dl>
<h3>The arms</h3>
<dl class="answers terms">{_arms(ARMS)}</dl>
<details><summary>The arms of an ablation: the lift with one ingredient removed</summary>
<dl class="answers terms">{_arms(ABLATIONS)}</dl></details>
</section>"""


def _arms(known: Mapping[str, str]) -> str:
    return "".join(f"<dt>{name}</dt><dd>{told[0].upper()}{told[1:]}.</dd>" for name, told in known.items())
