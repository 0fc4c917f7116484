"""Names the line of a file of the user's own, a recipe or a network, in which an exception began."""

import os
import traceback
from pathlib import Path


def line_of(error: Exception, file: Path) -> str:
    """``recipes/mine.py, line 7``: the last line on the way to the error that stands beside ``file``, or in it."""
    steps = [(step.filename, step.lineno) for step in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        steps.append((error.filename, error.lineno))
    beside = [(name, line) for name, line in steps if Path(name).parent == file.parent and "__init__" not in name]
    name, line = beside[-1] if beside else (str(file), None)
    return os.path.relpath(name) + (f", line {line}" if line else "")


def what_of(error: Exception) -> str:
    """``NameError: name 'x' is not defined``"""
    said = (error.msg if isinstance(error, SyntaxError) else str(error)).rstrip(".")
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
