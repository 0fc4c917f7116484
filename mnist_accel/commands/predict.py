"""Say which digit an image file shows, by a run's network: any size, any colours, any number of files."""

import json as as_json
import os
from dataclasses import asdict
from typing import Annotated

from pydantic.dataclasses import dataclass

from mnist_accel import cli
from mnist_accel.console import report
from mnist_accel.errors import UserError, say
from mnist_accel.recipe import CONFIG, option

USAGE = "python -m mnist_accel predict RUN image.png…"


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class PredictOptions:
    json: Annotated[bool, option("print a list as JSON instead of a table")] = False


def main(argv: list[str]) -> int:
    console = report.make_console()
    if cli.asks_for_help(argv):
        usage = f"{USAGE}   RUN is a run's folder; a folder of images will do, or - for one that is piped in"
        return report.show_usage(console, usage, PredictOptions)
    paths, words = cli.split_paths(argv, PredictOptions)
    options: PredictOptions = cli.read_options(words, PredictOptions)
    if len(paths) < 2:
        raise UserError(f"predict: {'no image' if paths else 'no run'} given. Type {USAGE}")

    from mnist_accel.inference.prediction import predict
    from mnist_accel.inference.weights import load

    predictions = predict(load(paths[0]), paths[1:], on_unreadable=tell)
    if options.json:
        rows = [asdict(prediction) | {"file": readable(prediction.file)} for prediction in predictions]
        console.print(as_json.dumps(rows, indent=2), markup=False, soft_wrap=True)
    elif predictions:
        from mnist_accel.console import inference_report

        inference_report.show_predictions(console, predictions)
    if not predictions:
        return UserError.exit_code
    return 4 if report.Output.lost else 0


def tell(file: str, why: str) -> None:
    say(f"{file}: {why}")


def readable(file: str) -> str:
    """A name may be any bytes, and JSON text may not."""
    return os.fsencode(file).decode(errors="replace")
