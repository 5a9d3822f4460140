"""Pure functions from arrays to matplotlib figures.

They use matplotlib's object interface alone: no display, no global state, nothing to close. matplotlib, scikit-learn
and Pillow are imported at the first use, so that importing this package costs nothing.
"""

from metricloss_pl.plots._style import MAX_COUNTED_CLASSES, MAX_LEGEND_CLASSES, MAX_TICKS, class_colours
from metricloss_pl.plots.embeddings import align, embedding_scatter, project
from metricloss_pl.plots.matrices import confusion_matrix, similarity_matrix
from metricloss_pl.plots.saving import save_figure, save_gif

__all__ = [
    "MAX_COUNTED_CLASSES",
    "MAX_LEGEND_CLASSES",
    "MAX_TICKS",
    "align",
    "class_colours",
    "confusion_matrix",
    "embedding_scatter",
    "project",
    "save_figure",
    "save_gif",
    "similarity_matrix",
]
