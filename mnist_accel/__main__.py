"""``python -m mnist_accel VERB key=value…``. Alone it lists the verbs."""

import sys

from mnist_accel.machine import launcher

launcher.end_with_launcher()  # which may be gone by the time torch is imported

from mnist_accel import cli, commands, errors
from mnist_accel.console import report
from mnist_accel.errors import UserError

FOLDERS = ("recipes", "benchmarks")  # of the checkout, not of the package
REMEDY = "Run it from the project's folder"


def main() -> int:
    argv = sys.argv[1:]
    if not argv or argv[0] in cli.HELP_WORDS:
        return show_verbs()
    verb, *words = argv
    known = commands.names()
    if verb not in known:
        closest = cli.nearest(verb, known)
        hint = f"Did you mean {closest}?" if closest else f"Verbs are {', '.join(known)}"
        raise UserError(f"{verb}: no such verb. {hint}")
    try:
        return commands.load(verb)(words)
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in FOLDERS:
            raise
        raise UserError(f"{verb}: the folders {' and '.join(FOLDERS)} are not here. {REMEDY}") from None


def show_verbs() -> int:
    console = report.make_console()
    report.facts(console, [(name, commands.summary(name)) for name in commands.names()])
    console.print("\npython -m mnist_accel VERB key=value…")
    return 0


if __name__ == "__main__":
    errors.exit_with_one_line(main)
