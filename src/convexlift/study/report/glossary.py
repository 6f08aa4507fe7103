"""The terms of the report page: what each means, and a link to that from where the page first uses it."""

from __future__ import annotations

import re
from typing import NamedTuple

ARMS = {
    "projected": "W is the parameter itself, set to zero where a step made it negative",
    "softplus": "W = log(1 + e^v) with a free parameter v",
    "softplus-fan-in": "the same, divided by the layer's number of inputs",
    "squared": "W = v² / 4 with a free parameter v",
    "lift": "W = softplus(b + R s), where s is a summary of the training batch that a small network "
    "computes; b, R and that network are trained",
    "lift-reference": "the lift as in the method's reference code, which computes every parameter of the "
    "network so and starts from scattered weights of its own",
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


class Term(NamedTuple):
    """A term's title in the glossary, what it means, and a pattern of its uses."""

    title: str
    told: str
    used: str


TERMS = {
    "way": Term(
        "Way of training (arm)",
        "A way of keeping the constrained weights W of an input-convex network at or above zero; the names "
        "are explained below. All ways share one architecture, start as the same network (except "
        "lift-reference and softplus-scattered), and have the same optimiser, schedule and grid of learning "
        "rates. Each is given the rate that does best on validation rows, over seeds that are not scored.",
        r"ways? of training",
    ),
    "frozen": Term(
        "Frozen",
        "One fixed convex function: every weight was settled before the test rows were seen.",
        r"frozen",
    ),
    "difference": Term(
        "Difference, interval, clear, tie",
        "Paired by seed: the losses of two ways are subtracted seed by seed, since with one seed both have "
        "the same data, start and batches. Its 95 % t-interval is over seeds; against the lift it is widened "
        "by what the noisy choice of rates adds, and a second interval resamples the test rows. It is called "
        "clear when these intervals leave out zero, else a tie. Nothing is corrected for the number of ways.",
        r"95 % interval|paired by seed|clearly|a tie",
    ),
    "half": Term(
        "Half the steps (half budget)",
        "Separate runs of half the steps, with a schedule of their own, at the same rate.",
        r"half the\s+(?:steps|budget)|half budget",
    ),
    "time": Term(
        "Equal time (equal seconds)",
        "The loss at the moment when the fastest way ends its run: a slower one has done fewer steps then.",
        r"equal(?: training)?\s+time|equal seconds",
    ),
    "flat": Term(
        "On the flat part (the shoulder)",
        "The share of weights at which softplus or square is so flat that the gradient is damped at least "
        "twentyfold: there a weight hardly moves. A projected weight is never there.",
        r"(?:on the\s+)?flat part|shoulder",
    ),
    "noise": Term(
        "Batch noise (emission noise)",
        "How much a weight of the lift differs from batch to batch: standard deviation over mean, the median "
        "over weights. Below 0.1 % the lift is deterministic in effect. Its end is just before the weights "
        "settle.",
        r"(?:batch|emission)\s+noise",
    ),
    "amplification": Term(
        "Step amplification",
        "How many times farther one Adam step moves a latent weight of the lift than it would move a direct "
        "parameter at the same rate.",
        r"step\s+amplification",
    ),
    "scaled": Term(
        "fan-in × W",
        "A weight times its layer's number of inputs, which can be compared across widths; the median over "
        "weights.",
        r"fan-in × W",
    ),
    "speed": Term(
        "Relative speed",
        "The relative change of a weight for a unit change of its latent (the parameter that it is computed "
        "from); the median. A dash: not finite, for weights at zero.",
        r"relative\s+speed",
    ),
}
_USES = {key: term.used for key, term in TERMS.items()}
_USES |= {name: rf"(?<![\w-]){name}(?![\w-])" for name in (*ARMS, *ABLATIONS)}
_ANY_USE = re.compile("|".join(f"({use})" for use in _USES.values()), re.IGNORECASE)
_WHOLE = (rf"<{tag}\b.*?</{tag}>" for tag in ("svg", "style", "title", "pre", "a", "h1"))
_NO_TEXT = re.compile(f"({'|'.join(_WHOLE)}|<[^>]*>)", re.DOTALL)


def linked(page: str) -> str:
    """The page with the first use of every term, above the section `terms`, a link to its entry there.

    >>> linked('<p>Of the frozen, frozen model.</p><section id="terms">')
    '<p>Of the <a class="term" href="#term-frozen">frozen</a>, frozen model.</p><section id="terms">'
    """
    keys, seen = list(_USES), set[int]()

    def link(use: re.Match[str]) -> str:
        place = int(use.lastindex or 0)
        if place in seen:
            return use[0]
        seen.add(place)
        return f'<a class="term" href="#term-{keys[place - 1]}">{use[0]}</a>'

    above, mark, terms = page.partition('<section id="terms">')
    parts = _NO_TEXT.split(above)
    parts[::2] = [_ANY_USE.sub(link, words) for words in parts[::2]]
    return "".join(parts) + mark + terms
