"""``fit(..., compile=True)``: the same training through ``torch.compile``."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from convexlift import ICNN, ConvexPotentialFlow, Lift, Softplus, Squared, fit
from convexlift.training import compilation

X = torch.randn(24, 2, generator=torch.Generator().manual_seed(0))
SETTINGS: dict[str, Any] = {"batch_size": 8, "lr": 0.01, "evaluate_every": 1, "progress": False}

# Raised by torch itself while it compiles.
pytestmark = pytest.mark.filterwarnings("ignore")
needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a C++ compiler"
)

FIT = sys.modules["convexlift.training.fit"]  # the package's `fit` is the function


def make(source: Callable[[nn.Module], nn.Module], hidden: tuple[int, ...] = (3, 3)) -> ConvexPotentialFlow:
    torch.manual_seed(0)
    return ConvexPotentialFlow([source(ICNN(2, hidden=hidden, seed=0))])


def traced(loss: Callable[..., Any]) -> Callable[..., Any]:
    """Traced and differentiated as for compilation, but run operation by operation: no compiler is waited
    for."""
    torch._dynamo.reset()
    return torch.compile(loss, dynamic=False, backend="aot_eager")


@needs_compiler
@pytest.mark.parametrize("source", [Softplus, Squared, Lift])
def test_the_losses_are_those_without_compilation(
    source: Callable[[nn.Module], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(FIT, "compiled", lambda loss: calls.append(loss) or traced(loss))
    plain = fit(make(source), X, steps=6, **SETTINGS)
    fast = fit(make(source), X, steps=6, compile=True, **SETTINGS)
    assert len(calls) == 1
    assert fast.loss == pytest.approx(plain.loss, rel=1e-4)
    assert plain.loss[-1] != plain.loss[0]


@needs_compiler
def test_a_compiled_loss_is_the_loss() -> None:
    torch._dynamo.reset()
    model = make(Softplus, hidden=(3,))
    model.initialise(X)
    parameters = list(model.parameters())
    known = model.loss(X)
    given = compilation.compiled(model.loss)(X)
    torch.testing.assert_close(given, known, rtol=1e-5, atol=1e-6)
    pairs = zip(torch.autograd.grad(given, parameters), torch.autograd.grad(known, parameters), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@needs_compiler
def test_a_compiled_run_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FIT, "compiled", traced)
    whole = fit(make(Softplus), X, steps=4, compile=True, **SETTINGS)

    def stop(event: Any) -> None:
        if event.step == 2:
            raise KeyboardInterrupt

    options: dict[str, Any] = {**SETTINGS, "steps": 4, "compile": True, "run_dir": tmp_path}
    assert fit(make(Softplus), X, callbacks=[stop], **options).stopped == "interrupted"
    with pytest.raises(ValueError, match="compile"):
        fit(make(Softplus), X, resume=True, **{**options, "compile": False})
    assert fit(make(Softplus), X, resume=True, **options).loss == pytest.approx(whole.loss, rel=1e-6)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder, exc

    def missing() -> str:
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", missing)
    with pytest.raises(RuntimeError, match=r"^compile=True needs a C\+\+ compiler and found none: install"):
        fit(make(Softplus), X, steps=1, compile=True, **SETTINGS)


def test_compile_is_a_choice() -> None:
    with pytest.raises(TypeError, match="^compile must be True or False; got 'max-autotune'$"):
        fit(make(Softplus), X, steps=1, compile="max-autotune", **SETTINGS)  # type: ignore[arg-type]
