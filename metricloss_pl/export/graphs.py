"""Trained regimes as graphs from images to calibrated probabilities, in ONNX or the format of torch.export."""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metricloss_pl.errors import UserError, reason
from metricloss_pl.regimes import Classifier

__all__ = ["MOST_DIFFERENCE", "write_graph"]

MOST_DIFFERENCE = 1e-4  # of probabilities, between a graph and its network
_OUTPUTS = ("probabilities", "embeddings")
_SIDES = (32, 28, 64, 224)  # tried in turn for a network of images as they are, whose size is not recorded
_MOST_IMAGES = 2**20  # per batch; older versions of torch refuse some networks without a limit

Graph = Callable[[Tensor], list[Tensor]]


class _Outputs(nn.Module):
    """Calibrated probabilities (B, C) and, if wanted, embeddings (B, D) of images (B, C, H, W)."""

    def __init__(self, model: Classifier, embeddings: bool) -> None:
        super().__init__()
        self.model, self.embeddings = model, embeddings

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        embeddings = self.model.embed(images)
        probabilities = self.model.probabilities(self.model.class_scores(embeddings))
        return (probabilities, embeddings) if self.embeddings else (probabilities,)


def write_graph(
    model: Classifier,
    file: Path,
    *,
    onnx: bool = True,
    dtype: torch.dtype = torch.uint8,
    embeddings: bool = False,
    image_size: int | None = None,
    metadata: Mapping[str, Any],
) -> float:
    """Write a regime as a graph, and compare the file with the regime on random images.

    The graph takes `images` (B, C, H, W) of any B >= 1 and gives `probabilities`. H and W are those that the images are
    cropped to, or any that the network takes if they are not cropped.

    Args:
        model: Regime in evaluation mode that knows how its images were prepared.
        file: File to write.
        onnx: Whether to write ONNX rather than the format of torch.export.
        dtype: `torch.uint8`, or `torch.float32` for images in [0, 1].
        embeddings: Whether `embeddings` are a second output.
        image_size: Height and width of the images of a network that was trained on images as they are. None: any size
            that it takes.
        metadata: Values to store in the file as JSON: as metadata properties in ONNX, as the extra file `metadata.json`
            in the format of torch.export.

    Returns:
        Largest difference between the graph and the network.

    Raises:
        UserError: A package is missing, the network cannot be exported, or the graph gives other results.
    """
    if onnx:
        _check_packages()
    outputs = _Outputs(model, embeddings).eval()
    assert model.image_format is not None
    size = model.image_format["image_size"] or image_size
    images = _example(model, dtype, size)
    sizes: dict[int, Any] = {0: torch.export.Dim("batch", max=_MOST_IMAGES)}
    if size is None:
        sizes |= dict.fromkeys((2, 3), torch.export.Dim.AUTO)  # fixed for a network that takes one size alone
    network = type(model.backbone).__name__
    with _quiet(), torch.no_grad():
        try:
            program = torch.export.export(outputs, (images,), dynamic_shapes={"images": sizes})
            if onnx:
                _write_onnx(program, file, embeddings, metadata)
            else:
                text = {"metadata.json": json.dumps(metadata, ensure_ascii=False)}
                torch.export.save(program, file, extra_files=text)
        except (OSError, UserError):
            raise
        except Exception as error:  # of any kind, for a network that holds what has no form in a graph
            first = reason(error).partition(". ")[0][:300]
            raise UserError(f"{network} cannot be exported ({type(error).__name__}: {first})") from error
        shapes = [(count, *images.shape[1:]) for count in (1, 3)]
        if any(isinstance(length, torch.SymInt) for length in _input_shape(program)[2:]):
            shapes.append((1, images.shape[1], 2 * images.shape[2], 3 * images.shape[3]))
        try:
            difference = _largest_difference(outputs, _reader(file, onnx), dtype, shapes)
        except AssertionError:  # a guard of torch.export: the graph holds for some sizes only
            difference = math.nan
    if not difference <= MOST_DIFFERENCE:
        advice = ", or give --image_size" if size is None else ""
        raise UserError(
            f"the graph of {network} gives other results than the network, by {difference:.2g} (at most "
            f"{MOST_DIFFERENCE:g}), so nothing is written: try another format{advice}"
        )
    return difference


def _check_packages() -> None:
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f'format onnx needs {error.name}, which is not installed: pip install "metricloss_pl[export]"'
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the warnings of exporters, which are about their own steps."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)


def _example(model: Classifier, dtype: torch.dtype, size: int | None) -> Tensor:
    """Return two random images, of a size that the network takes if none is given."""
    formats = model.image_format
    assert formats is not None
    size = size or formats["resize"]
    sides = _SIDES if size is None else (size,)
    for side in sides:
        images = _random_images(dtype, 2, formats["in_channels"] or 1, side, side)
        try:
            with torch.no_grad():
                model(images)
            return images
        except (RuntimeError, UserError) as error:  # too small or too large for it
            if side == sides[-1]:
                network = type(model.backbone).__name__
                raise UserError(
                    f"{network} can't take images of {side} x {side} px ({reason(error)}): give another image_size"
                ) from error
    raise AssertionError


def _random_images(dtype: torch.dtype, *shape: int) -> Tensor:
    values = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    return values if dtype == torch.float32 else (values * 256).to(dtype)


def _write_onnx(
    program: torch.export.ExportedProgram, file: Path, embeddings: bool, metadata: Mapping[str, Any]
) -> None:
    names = _OUTPUTS if embeddings else _OUTPUTS[:1]
    exported = torch.onnx.export(program, dynamo=True, input_names=["images"], output_names=names, verbose=False)
    assert exported is not None
    for name, value in metadata.items():
        exported.model.metadata_props[name] = json.dumps(value, ensure_ascii=False)
    exported.save(str(file))


def _reader(file: Path, onnx: bool) -> Graph:
    """Return the graph in a file as a function."""
    if not onnx:
        module = torch.export.load(file).module()
        return lambda images: list(module(images))
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda images: [torch.from_numpy(output) for output in session.run(None, {"images": images.numpy()})]


def _input_shape(program: torch.export.ExportedProgram) -> Any:
    return next(node.meta["val"].shape for node in program.graph.nodes if node.name == "images")


def _largest_difference(
    outputs: nn.Module, graph: Graph, dtype: torch.dtype, shapes: Iterable[tuple[int, ...]]
) -> float:
    """Return the largest difference between graph and network on random images, NaN if any value is NaN.

    Embeddings, which may have any scale, count by their difference in tenths of the largest value.
    """
    largest = 0.0
    for shape in shapes:
        images = _random_images(dtype, *shape)
        wanted = outputs(images)
        for name, found, want in zip(_OUTPUTS[: len(wanted)], graph(images), wanted, strict=True):
            largest_value = want.abs().max().clamp_min(torch.finfo(want.dtype).tiny).item()  # they may all be 0
            scale = 1.0 if name == "probabilities" else 10 * largest_value
            difference = (found - want).abs().max().item() / scale
            largest = difference if math.isnan(difference) else max(largest, difference)
    return largest
