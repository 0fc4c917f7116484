"""Says which commit of this project a run was made with."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 10.0  # a checkout on a slow network disk must not hold a run up


def commit_of(root: Path = ROOT) -> str | None:
    """That of the checkout whose top is ``root``, with ``+`` behind it where tracked files were changed; None where
    there is no checkout, or no git."""
    if not (root / ".git").exists():  # an installed package may lie somewhere below another project's checkout
        return None
    # GIT_DIR, which a git hook sets, would mean another checkout; and git is none of a job's processes.
    own = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    try:
        said = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"],
            env=own | {"GIT_OPTIONAL_LOCKS": "0"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return said.stdout.strip() or None
