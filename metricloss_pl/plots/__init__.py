"""Pure functions from arrays to matplotlib figures.

They use only matplotlib's object interface: no display, no global state, nothing to close. matplotlib, scikit-learn
and Pillow are imported at first use, so that importing this package is cheap.
"""

from metricloss_pl.plots._style import MAX_TICKS, SeriesStyle, class_colors, series_styles
from metricloss_pl.plots.comparison import (
    WIDTH,
    accuracy_against_rate,
    accuracy_against_size,
    class_differences,
    embedding_maps,
    learning_curves,
    reliability_diagram,
)
from metricloss_pl.plots.embeddings import align, embedding_scatter, project
from metricloss_pl.plots.matrices import confusion_matrix, similarity_matrix
from metricloss_pl.plots.paper_figures import loss_surfaces, pair_weights
from metricloss_pl.plots.saving import figure_bytes, save_figure, save_gif

__all__ = [
    "MAX_TICKS",
    "WIDTH",
    "SeriesStyle",
    "accuracy_against_rate",
    "accuracy_against_size",
    "align",
    "class_colors",
    "class_differences",
    "confusion_matrix",
    "embedding_maps",
    "embedding_scatter",
    "figure_bytes",
    "learning_curves",
    "loss_surfaces",
    "pair_weights",
    "project",
    "reliability_diagram",
    "save_figure",
    "save_gif",
    "series_styles",
    "similarity_matrix",
]
