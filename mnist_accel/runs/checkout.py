"""Says which commit of this project a run was made with."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 10.0  # a checkout on a slow network disk must not hold a run up


def commit_of(root: Path = ROOT) -> str | None:
    """That of the checkout whose top is ``root``, with ``+`` behind it where tracked files were changed; None where
    there is no checkout, or no git. Evidence that is being added to is no change of the program."""
    if not (root / ".git").exists():  # an installed package may lie somewhere below another project's checkout
        return None
    commit = said_by_git(root, "rev-parse", "HEAD")
    changed = said_by_git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)evidence")
    return f"{commit}{'+' if changed else ''}" if commit and changed is not None else None


def said_by_git(root: Path, *words: str) -> str | None:
    # GIT_DIR, which a git hook sets, would mean another checkout; and git is none of a job's processes.
    own = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    try:
        said = subprocess.run(
            ["git", "-C", str(root), *words],
            env=own | {"GIT_OPTIONAL_LOCKS": "0"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return said.stdout.strip() if said.returncode == 0 else None
