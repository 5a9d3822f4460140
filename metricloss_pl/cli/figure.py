"""`metricloss figure NAME`: figures that explain the losses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from metricloss_pl.cli.console import print_table, relative_path
from metricloss_pl.errors import UserError
from metricloss_pl.losses import functional as F
from metricloss_pl.losses.loss_landscape import pair_weight, surface

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_figure"]

_HALF = 2.0  # half the side of the plane
_POINTS = 201  # an odd number of grid points has a middle
_SURFACES: dict[str, Callable[..., Tensor]] = {
    "squared error": F.squared_error,
    "softmax cross-entropy": F.cross_entropy,
    "cosine loss": F.cosine_loss,
}
_PAIR_TERMS = {"log1p": "log(1 + d²)", "log": "log(d²)", "margin": "min(d², 1)", "negative": "d²"}


def draw_figure(
    figure: Literal["loss_surfaces", "pair_weights", "embeddings"],
    out: str | None = None,
    results: str | None = None,
    samples_per_class: int | None = None,
) -> None:
    """Draw a figure into a file.

    Args:
        figure: `loss_surfaces`: squared error, cross-entropy and cosine loss over the plane of two features (Barz &
            Denzler 2020, Figure 1). `pair_weights`: repulsion of two embeddings of different classes over their
            distance, for each inter term of the standalone center loss. `embeddings`: test embeddings of each variant
            of a comparison, such as one of center weights (Wen et al. 2016, Figure 5).
        out: File to write, .png, .svg or .pdf. Default: the figure's name and .png, in the working folder.
        results: Folder of the comparison, for `embeddings`.
        samples_per_class: Training-set size of the comparison, for `embeddings`. Default: the largest.

    Raises:
        UserError: The folder holds no comparison with embeddings, or the file has another ending.
    """
    from metricloss_pl import plots

    path = Path(out if out is not None else f"{figure}.png")
    drawn = _embeddings(results, samples_per_class) if figure == "embeddings" else _draw_losses(figure)
    plots.save_figure(drawn, path)
    print_table([("figure", relative_path(path))])


def _draw_losses(figure: str) -> Figure:
    from metricloss_pl import plots

    if figure == "loss_surfaces":
        axis = torch.linspace(-_HALF, _HALF, _POINTS)
        return plots.loss_surfaces({name: surface(loss, axis).numpy() for name, loss in _SURFACES.items()}, _HALF)
    distances = torch.logspace(-2, 2, 400, dtype=torch.float64)
    weights = {
        f"{term}: g = {_PAIR_TERMS[term]}": pair_weight(term, distances).numpy() for term in get_args(F.PairTerm)
    }
    return plots.pair_weights(distances.numpy(), weights)


def _embeddings(results: str | None, samples_per_class: int | None) -> Figure:
    from metricloss_pl import plots
    from metricloss_pl.compare.figures import embeddings
    from metricloss_pl.compare.summary import Summary
    from metricloss_pl.formatting import at_size

    if results is None:
        raise UserError("--results is missing: embeddings are drawn from the folder of a comparison")
    if not (Path(results) / "plan.json").is_file():
        raise UserError(f"--results {results} is no folder of a comparison: compare makes them, as runs/compare/<data>")
    comparison = Summary(results)
    size = comparison.sizes[-1] if samples_per_class is None else samples_per_class
    if size not in comparison.sizes:
        known = ", ".join("all" if n is None else str(n) for n in comparison.sizes)
        raise UserError(f"--samples_per_class is {size}: the sizes of {results} are {known}")
    panels = embeddings(comparison, size)
    if not panels:
        raise UserError(f"{results} has stored no embeddings of runs {at_size(size)}")
    columns = min(5, len(panels))
    width = max(plots.WIDTH, 2.2 * columns)
    return plots.embedding_maps(panels, comparison.class_names, columns=columns, width=width, scales=True)
