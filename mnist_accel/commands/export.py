"""Write a run's network as ONNX, with its weights and a model card, into RUN/export."""

from mnist_accel import cli
from mnist_accel.console import report
from mnist_accel.errors import UserError

USAGE = "python -m mnist_accel export RUN"


def main(argv: list[str]) -> int:
    console = report.make_console()
    if cli.asks_for_help(argv):
        console.print(f"{USAGE}   RUN is a finished run's folder; nothing in it is overwritten")
        return 0
    if len(argv) > 1:
        raise UserError(f"{argv[1]}: export takes one run and no keys. Type {USAGE}")

    from mnist_accel.inference.export import export

    folder, difference = export(argv[0])
    rows = [
        ("model", f"{folder}/model.onnx, outputs within {difference:.1g} of the original's"),
        ("weights", f"{folder}/model.safetensors"),
        ("card", f"{folder}/README.md"),
    ]
    report.facts(console, rows)
    return 4 if report.Output.lost else 0
