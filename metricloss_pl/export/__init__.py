"""Export of trained regimes for use elsewhere: ONNX, torch.export, or safetensors, with a model card."""

from metricloss_pl.export.api import ExportedFiles, Format, Input, export_model

__all__ = ["ExportedFiles", "Format", "Input", "export_model"]
