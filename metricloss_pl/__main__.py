"""`python -m metricloss_pl`: the program."""

from metricloss_pl.cli import main

if __name__ == "__main__":
    main()
