"""What torch is set to elsewhere, and random numbers."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

import convexlift as cl
from convexlift.sklearn import ConvexPotentialFlow

from .case import Case, answered
from .given import TINY, Mean, fit, flow, net, rows

X = rows().double().numpy()


def under(mode: Any) -> float:
    made = flow().freeze()
    with mode:
        return float(made.log_prob(rows()).double().sum())


def plainly() -> float:
    return float(flow().freeze().log_prob(rows()).double().sum())


def trained_under(mode: Any) -> float:
    """The difference that a mode makes to training."""
    plain = fit(Mean()).loss[-1]
    with mode:
        return fit(Mean()).loss[-1] - plain


def made_under(mode: Any) -> Any:
    with mode:
        return next(net().parameters())


def undisturbed(do: Any) -> bool:
    """Whether torch's generator is where it was."""
    before = torch.get_rng_state()
    do()
    return torch.equal(before, torch.get_rng_state())


def scored(x: Any = X, **others: Any) -> float:
    return float(ConvexPotentialFlow(**TINY, **others).fit(x).score(X))


def in_float64() -> float:
    """The difference that torch's default dtype makes to a fit."""
    before, plain = torch.get_default_dtype(), scored()
    torch.set_default_dtype(torch.float64)
    try:
        return scored() - plain
    finally:
        torch.set_default_dtype(before)


def in_threads() -> float:
    """How far two fits of one seed in two threads are from one alone."""
    alone = scored()
    with ThreadPoolExecutor(2) as threads:
        return max(abs(score - alone) for score in threads.map(lambda _: scored(), range(2)))


SEEDED = ("with _in_force(_Stream(_whole(seed))):", "if True:")

CASES: list[Case] = [
    answered(
        "a log-density under `torch.autocast`",
        lambda: under(torch.autocast("cpu", torch.bfloat16)) - plainly(),
        0.0,
        "the same as without it",
        "convexlift.ambient._ambient",
        lambda training: False,
    ),
    answered(
        "`fit` inside `torch.no_grad()`",
        lambda: trained_under(torch.no_grad()),
        0.0,
        "it trains as outside",
        "convexlift.ambient",
        ("stack.enter_context(torch.enable_grad())", "pass"),
    ),
    answered(
        "a network made inside `torch.inference_mode()`",
        lambda: made_under(torch.inference_mode()).is_inference(),
        False,
        "it can be trained later",
        "convexlift.ambient",
        ("stack.enter_context(torch.inference_mode(False))", "pass"),
    ),
    answered(
        'a network made where the default device is "meta"',
        lambda: str(made_under(torch.device("meta")).device),
        "cpu",
        "it is on the CPU, with numbers",
        "convexlift.ambient",
        ('stack.enter_context(torch.device("cpu"))', "pass"),
    ),
    answered(
        "fit an estimator, with torch seeded before",
        lambda: undisturbed(lambda: scored(X)),
        True,
        "torch's generator stays where it was",
        "convexlift.seeds",
        SEEDED,
    ),
    answered(
        "load a model, with torch seeded before",
        lambda: (cl.save(net().freeze(), "a"), undisturbed(lambda: cl.load("a")))[1],
        True,
        "torch's generator stays where it was",
        "convexlift.saving",
        (
            "with seeded(0), torch.random.fork_rng(devices=[], enabled=_has_foreign_kinds()):",
            "if True:",
        ),
    ),
    answered(
        "fits of one `random_state` in two threads",
        in_threads,
        0.0,
        "the same model as in one",
        "convexlift.seeds",
        SEEDED,
        kin="threads, not the caller's generator",
    ),
    answered(
        "fit an estimator, with torch's default dtype float64",
        in_float64,
        0.0,
        "it trains in its own dtype, as otherwise",
        "convexlift.sklearn.new_networks_in",
        lambda dtype: contextlib.nullcontext(),
    ),
]
