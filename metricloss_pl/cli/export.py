"""`metricloss export CHECKPOINT`: trained model for use elsewhere."""

from __future__ import annotations

from metricloss_pl.cli.console import print_table, relative_path
from metricloss_pl.export import Format, Input, export_model

__all__ = ["export_checkpoint"]


def export_checkpoint(
    checkpoint: str,
    format: Format = "onnx",
    out: str | None = None,
    input: Input = "uint8",
    embeddings: bool = False,
    image_size: int | None = None,
    comparison: str | None = None,
) -> None:
    """Export a trained model for use elsewhere, with a model card.

    Args:
        checkpoint: Checkpoint that `fit` has written, or the folder of a model that was exported as safetensors.
        format: `onnx`: graph for onnxruntime and others, with a script `predict.py` that needs neither PyTorch nor this
            package. `torch_export`: graph for `torch.export.load`. `safetensors`: weights and `config.json` for
            `metricloss_pl.load`.
        out: File to write, ending in .onnx, .pt2 or .safetensors, or a folder. Default: in the folder
            `export` of the run.
        input: Type of the images that a graph takes, (B, C, H, W): `uint8`, or `float32` in [0, 1].
        embeddings: Whether a graph gives the embeddings beside the probabilities.
        image_size: Height and width in px of a graph's images, for a network that was trained on images as they are.
            Default: any size that it takes.
        comparison: Folder of a comparison whose results the model card shows.

    Raises:
        UserError: The checkpoint cannot be exported, or a file cannot be written.
    """
    found = export_model(checkpoint, format, out, input, embeddings, image_size, comparison)
    rows = [("model", relative_path(found.model))]
    if found.beside is not None:
        rows.append(("settings" if format == "safetensors" else "script", relative_path(found.beside)))
    rows.append(("model card", relative_path(found.card)))
    if found.difference is not None:
        rows.append(("difference", f"{found.difference:.1g} at most, from PyTorch on random images"))
    print_table(rows)
