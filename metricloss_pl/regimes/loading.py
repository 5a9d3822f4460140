"""Loading of a trained regime from its checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from metricloss_pl import backbones, mixing, regimes, schedules  # noqa: F401  a checkpoint may name their classes
from metricloss_pl.checkpoints import read_model, with_given_classes
from metricloss_pl.errors import UserError
from metricloss_pl.regimes import Classifier

__all__ = ["load"]


def load(path: str | Path, classes: Iterable[type] = ()) -> Classifier:
    """Load a trained regime onto the CPU, ready for `predict`.

    Args:
        path: Checkpoint that `fit` has written, such as `runs/digits_cosine/version_0/checkpoints/best.ckpt`; or the
            folder or file that `export --format safetensors` has written.
        classes: Classes of your own that the checkpoint names, such as the regime or its backbone. They may have moved
            to another module.

    Returns:
        The regime in evaluation mode.

    Raises:
        UserError: The file is missing or no such checkpoint, names other classes, or was written by a Trainer of your
            own, and so lacks the backbone's settings.
    """
    classes = list(classes)
    class_path = with_given_classes(read_model(path)["hyper_parameters"].get("_class_path"), classes)
    if class_path is None:
        raise UserError(
            f"checkpoint {path} was not written on the command line, and lacks the settings of the backbone: load it "
            "with the regime's class, such as CosineClassifier.load_from_checkpoint(path, backbone=...)"
        )
    regime = _find_class(str(class_path), classes)
    if regime is None:
        raise UserError(
            f"checkpoint {path} names {class_path}, which a checkpoint alone may not import: import it, and call "
            f"load(path, classes=[{class_path.rpartition('.')[2]}])"
        )
    model: Classifier = regime.load_from_checkpoint(path, classes=classes, map_location="cpu", weights_only=True)
    return model.eval()


def _find_class(class_path: str, classes: Iterable[type]) -> type[Classifier] | None:
    """Return the regime of this path, if it is given or imported already."""
    module, _, name = class_path.rpartition(".")
    named = [getattr(sys.modules.get(module), name, None)]
    named += [cls for cls in classes if f"{cls.__module__}.{cls.__qualname__}" == class_path]
    return next((cls for cls in named if isinstance(cls, type) and issubclass(cls, Classifier)), None)
