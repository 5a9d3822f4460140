"""Pretrained rivals of training from scratch: a linear probe of frozen features, and fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from torchvision import models

from metricloss_pl.backbones import TimmBackbone, TorchvisionBackbone
from metricloss_pl.compare.config import ComparisonConfig, Range, Variant
from metricloss_pl.compare.run_files import RunFileFactory
from metricloss_pl.config_files import shipped_configs
from metricloss_pl.errors import UserError

__all__ = ["find_backbone", "with_pretrained"]

_C = Range(1.0, 1e5, log=True)
_FINE_TUNED = {
    "model.optimizer.lr": Range(1e-4, 3e-3, log=True),
    "model.optimizer.weight_decay": Range(1e-3, 0.3, log=True),
}
_UNTUNED_C = 100.0
_EPOCHS = 30  # of fine-tuning, if the plan gives no length
# Settings of the data that follow from the weights, unless the plan's overrides give them.
_DATA = {
    "image_size": "auto",
    "resize": None,
    "train_resize": None,
    "mean": None,
    "std": None,
    "repeat": 1,
    "oversample_to": None,
}
_CROP = {"class_path": "RandomResizedCrop", "init_args": {"area": [0.3, 1.0]}}
_FLIP = "HorizontalFlip"


def with_pretrained(config: ComparisonConfig, pretrained: str) -> ComparisonConfig:
    """Return a comparison with the variants `linear_probe`, `fine_tuned_softmax` and `fine_tuned_cosine` added.

    They are the run files folder_probe.yaml and folder_fine_tuned.yaml with the network and the data of the baseline.
    Size and normalization of the images are those of the weights, unless overrides for all variants give them. A
    variant of the plan that has one of these names stays as it is.

    Args:
        config: Comparison with a run file as its baseline.
        pretrained: Network and weights, see `find_backbone`.

    Raises:
        UserError: The plan can't be run without these variants, its baseline is no run file, there is no such network,
            or its weights can't be had.
    """
    checked = replace(config, include=None).checked()
    baseline = checked.variants[str(checked.baseline)]
    if baseline.config is None:
        raise UserError(
            f"pretrained takes the data of the baseline, and {checked.baseline} is no run file: name another baseline"
        )
    file = RunFileFactory(str(baseline.config), checked.resolved_overrides(str(checked.baseline)))
    data = file.plain({})["data"]
    backbone = find_backbone(pretrained)
    given = {name.removeprefix("data.") for name in config.overrides if name.startswith("data.")}
    flips = [one for one in data["init_args"]["augment"] or [] if _class_name(one) == _FLIP]

    def block(**settings: Any) -> dict[str, Any]:
        changed = {name: value for name, value in {**_DATA, **settings}.items() if name not in given}
        return {"class_path": data["class_path"], "init_args": {**data["init_args"], **changed}}

    untuned = {} if config.tuning.trials else {"model.C": _UNTUNED_C}
    length = {} if config.steps or config.epochs else {"trainer.max_epochs": _EPOCHS}
    probe = Variant(
        config="folder_probe.yaml",
        overrides={"data": block(batch_size=64, augment=flips), "model.backbone": backbone, **untuned},
        space={"model.C": _C},
        kind="linear_probe",
    )
    fine_tuned = {
        f"fine_tuned_{regime}": Variant(
            config="folder_fine_tuned.yaml",
            overrides={
                "data": block(batch_size=32, augment=[_CROP, *flips]),
                "model": str(shipped_configs() / "model" / f"{regime}_fine_tuned.yaml"),
                "model.backbone": backbone,
                **length,
            },
            space=_FINE_TUNED,
            kind="fine_tuned",
        )
        for regime in ("softmax", "cosine")
    }
    return replace(config, variants={**config.variants, "linear_probe": probe, **fine_tuned, **config.variants})


def find_backbone(pretrained: str) -> dict[str, Any]:
    """Return class path and arguments of a pretrained network, which is built once, so that its weights are at hand.

    Args:
        pretrained: Name of a network of torchvision or timm, for its own weights, which are downloaded once; a file of
            weights whose name begins with that of its network, such as `resnet50-0676ba61.pth`; or `NAME=FILE`.

    Raises:
        UserError: There is no such network, or its weights can't be had or do not fit.
    """
    name, _, file = pretrained.rpartition("=")
    known = _networks()
    if not name and Path(file).is_file():
        name = max((network for network in known if Path(file).name.startswith(network)), key=len, default="")
        if not name:
            raise UserError(
                f"pretrained is {file}: no network of torchvision or timm has a name that begins this file's name; "
                f"give NAME={file}"
            )
    elif not name:
        name, file = file, ""
    libraries = known.get(name) or known.get(name.partition(".")[0], [])  # timm's weights have a tag behind a dot
    if "." in name:
        libraries = [one for one in libraries if one is TimmBackbone]
    if not libraries:
        close = get_close_matches(name, known) or ["efficientnet_b0", "resnet50"]
        has_timm = any(TimmBackbone in libraries for libraries in known.values())
        missing = "" if has_timm else ' (not installed: pip install "metricloss_pl[timm]")'
        raise UserError(
            f"pretrained is {pretrained}: neither a file nor a network of torchvision or timm{missing}; close names: "
            f"{', '.join(close)}"
        )
    for library in libraries:
        weights = file or ("DEFAULT" if library is TorchvisionBackbone else "pretrained")
        try:
            library(name, weights=weights)
        except UserError:  # both have a network of this name, of other layers
            if library is libraries[-1]:
                raise
        else:
            break
    return {"class_path": library.__name__, "init_args": {"name": name, "weights": weights}}


def _networks() -> dict[str, list[type]]:
    """Return the libraries that have a network, by its name."""
    known: dict[str, list[type]] = {name: [TorchvisionBackbone] for name in models.list_models(module=models)}
    try:
        import timm
    except ImportError:
        return known
    for name in timm.list_models():
        known.setdefault(name, []).append(TimmBackbone)
    return known


def _class_name(block: Any) -> str:
    """Return the name of a class in a config, which may be a path or have arguments."""
    return str(block["class_path"] if isinstance(block, Mapping) else block).rpartition(".")[2]
