"""Subcommands of the program."""

__all__ = ["DESCRIPTIONS"]

DESCRIPTIONS = {
    "fit": "Train a network by a run file.",
    "validate": "Evaluate a checkpoint on the validation set.",
    "test": "Evaluate a checkpoint on the test set.",
    "predict": "Write the predicted classes of images into a CSV file.",
    "export": "Export a trained model for use elsewhere, with a model card.",
    "compare": "Compare losses on the same images and write a report.",
    "report": "Write the report of a comparison again.",
    "figure": "Draw a figure that explains the losses.",
    "hierarchy": "Show a class hierarchy.",
    "configs": "List the shipped configs, or copy one for editing.",
}
