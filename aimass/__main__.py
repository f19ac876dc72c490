"""Runs the command line: `python -m aimass`."""

from aimass.cli import main

if __name__ == "__main__":
    main()
