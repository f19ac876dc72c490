"""The process of a command, for tests: forked where everything is imported already, which saves seconds each time."""

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from aimass import cli, console

WIDTH = 200
for each in ("aimass.training", "services.trainer.service"):
    importlib.import_module(each)


def run(arguments: Sequence[str | bytes], environment: Mapping[str, str], folder: Path) -> None:
    """Do what `aimass` does with these arguments in *folder*, and leave there what it writes."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, name in ((1, "stdout"), (2, "stderr")):
        descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, number)
        os.close(descriptor)
    for where in (console.out, console.err):
        where.width = WIDTH
    sys.argv = ["aimass", *map(os.fsdecode, arguments)]
    cli.main()
