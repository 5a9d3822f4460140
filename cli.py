"""Launcher of a clone: `python cli.py fit --config configs/digits_cosine.yaml`."""

from metricloss_pl.cli import main

if __name__ == "__main__":
    main()
