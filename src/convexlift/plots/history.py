"""The losses of a run, by step."""

from __future__ import annotations

import numpy as np

from convexlift.plots.drawing import MODEL, OTHER, Axes, axes_of, robust_range, tick, tick_text
from convexlift.training import History


def plot_history(history: History, *, label: str = "loss", ax: Axes | None = None) -> Axes:
    """Draw the training and the validation loss of a run by step; a ring marks the best step.

    Arrow heads on the upper edge stand for losses above the frame, which holds the bulk of them.

    Args:
        history: of a run; at least one evaluation.
        label: what the loss is called, at the vertical axis.
        ax: where to draw; the axes of a new figure if omitted. They are returned.

    Raises:
        ValueError: a history without an evaluation.
        ImportError: matplotlib is missing.

    Example:
        >>> history = History(steps=[10, 20], loss=[2.0, 1.0], validation=[2.5, 1.5], best_step=20)
        >>> plot_history(history).get_legend_handles_labels()[1]
        ['validation rows', 'training batches', 'best: 1.5 at step 20']
    """
    if not history.steps:
        raise ValueError("the history holds no evaluation that could be drawn")
    ax = axes_of(ax, 640, 360)
    top = robust_range([*history.validation, *history.loss])[1]
    named = {"validation rows": history.validation, "training batches": history.loss}
    for (name, losses), colour, dash in zip(named.items(), (MODEL, OTHER), ("-", "--"), strict=True):
        if losses:
            ax.plot(history.steps, losses, dash, color=colour, label=name)
            above = np.array(history.steps)[np.array(losses) > top]
            heads = {"color": colour, "alpha": 0.55, "clip_on": False, "in_layout": False}
            ax.plot(above, np.full(len(above), top), "^", **heads)
    if history.validation:
        best = history.validation[history.steps.index(history.best_step)]
        told = tick_text(float(f"{best:.5g}"))
        ring = {"markersize": 9, "fillstyle": "none", "linestyle": "none", "color": MODEL}
        ax.plot(history.best_step, best, "o", label=f"best: {told} at step {history.best_step:,}", **ring)
    ax.set(ylim=robust_range([*history.validation, *history.loss]), xlabel="steps", ylabel=label)
    tick(ax)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0, frameon=False)
    return ax
