"""Figures of models, data and runs. Needs the extra ``convexlift[plots]``.

Every function draws on the matplotlib axes it is given, or on those of a new figure, and returns them; none
touches pyplot or other global state, so ``ax.figure.savefig(...)`` writes the file.
"""

from convexlift.plots.density import plot_density
from convexlift.plots.flow import plot_flow
from convexlift.plots.history import plot_history
from convexlift.plots.images import draw_images
from convexlift.plots.potential import plot_potential

__all__ = ["draw_images", "plot_density", "plot_flow", "plot_history", "plot_potential"]
