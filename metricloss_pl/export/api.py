"""Export of a checkpoint into a file, with a script that predicts and a model card beside it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import ExitStack
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from metricloss_pl.callbacks.run_folder import run_of
from metricloss_pl.checkpoints import read_model
from metricloss_pl.environment import versions
from metricloss_pl.errors import UserError, check_choice, shell_command
from metricloss_pl.export.card import resizing_rule, write_card
from metricloss_pl.export.graphs import write_graph
from metricloss_pl.files import replacing
from metricloss_pl.regimes import Classifier
from metricloss_pl.regimes.loading import load
from metricloss_pl.safetensors_files import config_beside, is_safetensors, write_safetensors

__all__ = ["ExportedFiles", "Format", "Input", "export_model"]

Format = Literal["onnx", "torch_export", "safetensors"]
Input = Literal["uint8", "float32"]

_SUFFIXES = {"onnx": ".onnx", "torch_export": ".pt2", "safetensors": ".safetensors"}
_STEM, _FOLDER, _SCRIPT = "model", "export", "predict.py"
_MARK = "metricloss_pl"  # in every file that is written beside a model
_OF_TRAINING = (  # keys of a checkpoint that only a training needs
    *("epoch", "global_step", "loops", "callbacks", "optimizer_states", "lr_schedulers"),
    *("current_model_state", "averaging_state", "MixedPrecision"),
)


class ExportedFiles(NamedTuple):
    """Files of an export."""

    model: Path
    beside: Path | None  # script or settings, where the format has some
    card: Path
    difference: float | None  # largest one between the graph and the network


def export_model(
    checkpoint: str | Path,
    format: Format = "onnx",
    out: str | Path | None = None,
    input: Input = "uint8",
    embeddings: bool = False,
    image_size: int | None = None,
    comparison: str | Path | None = None,
    classes: Iterable[type] = (),
) -> ExportedFiles:
    """Export a trained regime, each file complete or not at all, with a model card beside it.

    `onnx` and `torch_export` write a graph from images (B, C, H, W) to calibrated probabilities (B, C), which
    normalizes by itself and takes any number of images. The graph is compared with the network on random images. Beside
    an ONNX file, `predict.py` predicts photos with onnxruntime, numpy and Pillow alone. `safetensors` writes weights
    and `config.json`, to be read by `metricloss_pl.load`. Beside a model of another name, say `birds`, these files
    are `birds_predict.py` and `birds_config.json`.

    Args:
        checkpoint: Checkpoint that `fit` has written, or a model exported as safetensors.
        format: `onnx`, `torch_export` or `safetensors`.
        out: File to write, ending in .onnx, .pt2 or .safetensors, or a folder. None: `model` with that
            ending in the folder `export` of the run.
        input: Type of a graph's images: `uint8`, or `float32` in [0, 1].
        embeddings: Whether a graph gives the embeddings (B, D), too.
        image_size: Height and width of a graph's images, for a network that was trained on images as they are. None:
            any size that it takes.
        comparison: Folder of a comparison, for the model card.
        classes: Classes of your own that the checkpoint names.

    Raises:
        UserError: The checkpoint cannot be loaded or does not tell how its images were prepared, a package is missing,
            the graph gives other results than the network, or a file cannot be written.
    """
    check_choice("format", format, Format)
    check_choice("input", input, Input)
    model, run = load(checkpoint, classes), None if is_safetensors(checkpoint) else run_of(checkpoint)
    if model.image_format is None:
        raise UserError(
            f"checkpoint {checkpoint} does not tell how its images were prepared, since it was not trained on an "
            "ImageDataModule: export its module by torch.export or torch.onnx.export"
        )
    trained = model.image_format["image_size"]
    if image_size is not None and (image_size < 1 or trained not in (None, image_size)):
        right = "at least 1" if trained is None else f"{trained}, with which the network was trained, or left out"
        raise UserError(f"image_size is {image_size}: it must be {right}")
    file = _file(Path(checkpoint), run, format, out)
    beside = {
        "onnx": file.with_name(_SCRIPT if file.stem == _STEM else f"{file.stem}_{_SCRIPT}"),
        "safetensors": config_beside(file),
    }.get(format)
    card, difference = file.with_name(f"{file.stem}_card.md"), None
    for path in (card, beside):
        if path is not None and path.is_file() and _MARK not in path.read_text(encoding="utf-8", errors="replace"):
            raise UserError(
                f"{path} is not a file of metricloss_pl, so it is not replaced: give --out in another folder"
            )
    content = read_model(checkpoint)
    with ExitStack() as stack:
        options = {"format": format, "out": str(file), "comparison": comparison, "image_size": image_size}
        options |= {"input": input, "embeddings": str(embeddings).lower()} if format != "safetensors" else {}
        given = [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]
        command = shell_command("export", str(checkpoint), *given)
        text = write_card(model, Path(checkpoint), run, command, None if comparison is None else Path(comparison))
        stack.enter_context(replacing(card)).write_text(text, encoding="utf-8")
        if format == "safetensors":
            shared = {key: value for key, value in content.items() if key not in _OF_TRAINING}
            # The split would give away the files that the model was trained on.
            write_safetensors({**shared, "split": None, "versions": versions()}, file)
        else:
            difference = write_graph(
                model,
                stack.enter_context(replacing(file)),
                onnx=format == "onnx",
                dtype=getattr(torch, input),
                embeddings=embeddings,
                image_size=image_size,
                metadata=_metadata(model, input, format),
            )
        if format == "onnx" and beside is not None:
            program = (files("metricloss_pl.export") / "templates" / _SCRIPT).read_text(encoding="utf-8")
            program = program.replace(f'"{_STEM}.onnx"', json.dumps(file.name, ensure_ascii=False))
            stack.enter_context(replacing(beside)).write_text(program, encoding="utf-8")
    return ExportedFiles(file, beside, card, difference)


def _file(checkpoint: Path, run: Path | None, format: Format, out: str | Path | None) -> Path:
    """Return the file to write."""
    suffix = _SUFFIXES[format]
    if out is None:
        out = (checkpoint.parent if run is None else run) / _FOLDER
        return out / f"{_STEM}{suffix}"
    if Path(out).is_dir() or not Path(out).suffix:
        return Path(out) / f"{_STEM}{suffix}"
    if Path(out).suffix != suffix:
        raise UserError(f"--out is {out}: with format {format} it must end in {suffix}, or be a folder")
    return Path(out)


def _metadata(model: Classifier, input: Input, format: Format) -> dict[str, Any]:
    """Return what a graph does not tell by itself."""
    assert model.image_format is not None
    image_size, resize = model.image_format["image_size"], model.image_format["resize"]
    return {
        "class_names": model.class_names,
        "in_channels": model.image_format["in_channels"],
        "resize": image_size if resize is None else resize,
        "image_size": image_size,
        "resizing": resizing_rule(model),
        "input": input,
        "temperature": model.temperature,
        "regime": type(model).__name__,
        "versions": versions(*(["onnx", "onnxscript"] if format == "onnx" else [])),
    }
