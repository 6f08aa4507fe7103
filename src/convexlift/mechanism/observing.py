"""What the instruments share: a model's emissions, and how to look at a model without leaving a trace."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from convexlift.checks import check_finite
from convexlift.seeds import drawing_apart
from convexlift.sources import Centred, Lift, WeightSource

Loss = Callable[..., Tensor]


def blocks(model: nn.Module, batch: Any) -> Iterator[tuple[WeightSource, Tensor | None]]:
    """Each weight source of a model, with the points it sees when the model is given this batch."""
    for block, points in emitters(model, batch):
        yield block.source if isinstance(block, Centred) else block, points


def emitters(model: nn.Module, batch: Any) -> Iterator[tuple[WeightSource | Centred, Tensor | None]]:
    """The same, with centred sources as they are: what emits the potentials."""
    if isinstance(model, WeightSource | Centred):
        yield model, batch
        return
    inputs: Callable[[Any], list[Tensor]] | None = getattr(model, "block_inputs", None)
    if inputs is None:
        raise TypeError(f"expected a weight source or a task of weight sources; got {type(model).__name__}")
    seen = [None] * len(parts(model)) if batch is None else inputs(batch)
    for block, points in zip(parts(model), seen, strict=True):
        if isinstance(block, WeightSource | Centred):
            yield block, points


def parts(model: Any) -> list[nn.Module]:
    """The blocks of a task, one or several."""
    return list(getattr(model, "blocks", ()) or [model.block])


def emissions(model: nn.Module, batch: Any) -> Iterator[tuple[WeightSource, dict[str, Tensor]]]:
    """Each weight source of a model, with the constrained weights it emits."""
    for source, points in blocks(model, batch):
        emitted = source.weights(points)
        yield source, {name: emitted[name] for name in source.names}


def weight_sources(model: nn.Module, instrument: str) -> list[WeightSource]:
    """All weight sources in a model, in its order.

    Raises:
        ValueError: there is none.
    """
    found = [part for part in model.modules() if isinstance(part, WeightSource)]
    if not found:
        raise ValueError(f"{instrument} needs a model with a weight source")
    return found


@contextmanager
def observing(model: nn.Module) -> Iterator[None]:
    """Leave all as it was, to the bit: parameters, buffers, modes and torch's random state."""
    tensors = [*model.parameters(), *model.buffers()]
    kept = [(tensor, tensor.detach().clone(), tensor.requires_grad) for tensor in tensors]
    modes = [(part, part.training) for part in model.modules()]
    buffers = [(part, dict(part._buffers)) for part in model.modules()]  # some are replaced, not written to
    try:
        with drawing_apart(model, globally=True):  # a loss is whatever the user wrote
            yield
    finally:
        for part, training in modes:
            part.training = training
        for part, held in buffers:
            part._buffers.update(held)
        with torch.no_grad():
            for tensor, value, requires_grad in kept:
                if not torch.equal(tensor, value):  # an untouched tensor may belong to a graph in use
                    tensor.copy_(value)
                tensor.requires_grad_(requires_grad)


@contextmanager
def recording(sources: Iterable[WeightSource], method: str) -> Iterator[dict[WeightSource, Any]]:
    """Note what this method of each source returned last, while it works as usual."""
    seen: dict[WeightSource, Any] = {}

    def noting(source: WeightSource) -> Callable[..., Any]:
        original = getattr(source, method)

        def note(*args: Any, **kwargs: Any) -> Any:
            seen[source] = original(*args, **kwargs)
            return seen[source]

        return note

    with _replacing(method, {source: noting(source) for source in sources}):
        yield seen


@contextmanager
def binding(weights: Mapping[WeightSource, Mapping[str, Tensor]]) -> Iterator[None]:
    """Make each source emit these tensors, whatever the batch."""

    def emitting(tensors: Mapping[str, Tensor]) -> Callable[..., dict[str, Tensor]]:
        return lambda batch=None: dict(tensors)

    with _replacing("weights", {source: emitting(tensors) for source, tensors in weights.items()}):
        yield


def gradients(loss: Loss, batch: Any, at: Sequence[Tensor], **options: Any) -> list[Tensor]:
    """The gradient of ``loss(batch, **options)`` on each of these tensors; zeros where it does not read one.

    Raises:
        ValueError: the loss is no scalar tensor, reads none of them, or it or its gradient is not finite.
    """
    with torch.enable_grad():
        value = loss(batch, **options)
        if not isinstance(value, Tensor) or value.ndim:
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"loss must return a scalar tensor; got {got}")
        found = torch.autograd.grad(value, at, allow_unused=True) if value.requires_grad else ()
    if all(gradient is None for gradient in found):
        raise ValueError("loss does not depend on the weights of the model")
    if not all(bool(g.isfinite().all()) for g in (value, *found) if g is not None):
        raise ValueError("the loss or its gradient is not finite at a probe batch")
    return [torch.zeros_like(x) if g is None else g for x, g in zip(at, found, strict=True)]


def probe_calls(
    instrument: str, model: nn.Module, batches: Iterable[Any], emit_from: Iterable[Any] | None
) -> list[tuple[Any, dict[str, Any]]]:
    """The probe batches, checked, each with the options with which a loss is to be called.

    Raises:
        ValueError: fewer than three, entries that are not finite, tensors that share memory, or no
            ``emit_from`` for a lift that emits from independent batches (or not as many as probes).
    """
    probes = list(batches)
    if len(probes) < 3:
        raise ValueError(f"{instrument} needs at least 3 probe batches; got {len(probes)}")
    named = [(f"probe batch {k}", batch) for k, batch in enumerate(probes)]
    if emit_from is None:
        if any(isinstance(part, Lift) and part.coupling == "independent" for part in model.modules()):
            raise ValueError("the lift reads independent batches in training: pass emit_from")
        options: list[dict[str, Any]] = [{} for _ in probes]
    else:
        emitting = list(emit_from)
        if len(emitting) != len(probes):
            raise ValueError(f"expected {len(probes)} batches in emit_from; got {len(emitting)}")
        named += [(f"emit_from batch {k}", batch) for k, batch in enumerate(emitting)]
        options = [{"emit_from": batch} for batch in emitting]
    for name, batch in named:
        for tensor in _tensors(batch):
            check_finite(tensor, name=f"samples of {name}")
    _check_apart(named)
    return list(zip(probes, options, strict=True))


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """All entries of some tensors as one vector, detached."""
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def centred(rows: Tensor) -> Tensor:
    """Rows minus their mean in float64; exactly zero where all rows are the same."""
    apart = rows.double() - rows[0].double()
    return apart - apart.mean(0)


def _check_apart(named: Iterable[tuple[str, Any]]) -> None:
    """Refuse batches that share memory: a batch counted twice, or a buffer that was filled anew."""
    names, spans = [], []
    for k, (name, batch) in enumerate(named):
        names.append(name)
        for tensor in _tensors(batch):
            if tensor.numel():
                length = tensor.numel() if tensor.is_contiguous() else 1
                start = tensor.data_ptr()
                spans.append((str(tensor.device), start, start + length * tensor.element_size(), k))
    reach: dict[str, tuple[int, int]] = {}  # by device, where the spans so far end, and whose is the last
    for device, start, stop, k in sorted(spans):
        end, other = reach.get(device, (start, k))
        if start < end and k != other:
            one, two = names[min(k, other)], names[max(k, other)]
            raise ValueError(f"{one} and {two} share memory: each must be a tensor of its own")
        reach[device] = max((stop, k), (end, other))


def _tensors(batch: Any) -> list[Tensor]:
    parts = batch if isinstance(batch, tuple) else (batch,)
    return [part for part in parts if isinstance(part, Tensor)]


@contextmanager
def _replacing(method: str, functions: Mapping[WeightSource, Callable[..., Any]]) -> Iterator[None]:
    for source, function in functions.items():
        vars(source)[method] = function
    try:
        yield
    finally:
        for source in functions:
            del vars(source)[method]
