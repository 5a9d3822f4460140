"""The program with trainings cut short, for commands of the documentation: `metricloss` in their tests is this file."""

import sys

from metricloss_pl.cli import main

SHORT = {
    "fit": {"--trainer.max_epochs": "1", "--trainer.limit_train_batches": "2", "--trainer.accelerator": "cpu"},
    "compare": {"--seeds": "[0]", "--tuning.trials": "1", "--steps": "2", "--n_parallel": "1"},
}

if __name__ == "__main__":
    words = sys.argv[1:]
    given = {word.partition("=")[0] for word in words}
    if not {"--help", "--model.help", "--data.help"} & given:
        added = SHORT.get(words[0], {}).items()
        words[1:1] = [f"{name}={value}" for name, value in added if name not in given]
    main(words)
