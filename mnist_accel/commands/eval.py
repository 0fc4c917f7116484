"""Score a run's network again, beside what its result.json says."""

from typing import Annotated, Literal

from pydantic.dataclasses import dataclass

from mnist_accel import cli, errors
from mnist_accel.console import report
from mnist_accel.errors import UserError
from mnist_accel.recipe import CONFIG, REAL_DATA, option, with_shifts

USAGE = "python -m mnist_accel eval RUN key=value…"


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class EvalOptions:
    dataset: Annotated[Literal["auto", "mnist", "synthetic"], option("auto takes the one that the run used")] = "auto"
    data_dir: Annotated[
        str | None,
        option("the folder that holds MNIST/raw (default: the run's, else $MNIST_ACCEL_DATA)", min_length=1),
        REAL_DATA,
    ] = None
    device: Annotated[Literal["auto", "cpu", "cuda"], option("auto takes a GPU where there is one")] = "auto"
    precision: Annotated[
        Literal["auto", "fp32", "tf32", "fp16", "bf16"], option("auto takes the run's, where this device has it")
    ] = "auto"
    threads: Annotated[int, option("CPU threads; 0 takes all cores", ge=0, le=1024)] = 0


def main(argv: list[str]) -> int:
    console = report.make_console()
    if cli.asks_for_help(argv):
        return report.show_usage(console, f"{USAGE}   RUN is a run's folder, or its model.safetensors", EvalOptions)
    paths, words = cli.split_paths(argv, EvalOptions)
    options: EvalOptions = cli.read_options(words, EvalOptions)
    if len(paths) != 1:
        raise UserError(f"eval: {'more than one' if paths else 'no'} run given. Type {USAGE}")

    from mnist_accel.console import inference_report
    from mnist_accel.inference import scoring
    from mnist_accel.inference.weights import find_weights, load

    network = load(paths[0])
    then = scoring.Then.of(find_weights(paths[0]).parent)
    runtime = scoring.start_as(then, options.precision, options.device, options.threads)
    data = scoring.load_data(then, options.dataset, options.data_dir)
    score = scoring.score(network, data, runtime)
    if errors.is_first_rank():
        threads = f"{runtime.threads} thread{'s'[: runtime.threads > 1]}"
        meta = network.meta
        rows = [
            ("run", paths[0]),
            ("model", f"{meta.network} of recipe {meta.recipe}{with_shifts(meta.test_shifts)}"),
            ("device", f"{runtime.device_name}, {threads}, {runtime.precision}"),
            ("data", f"{data.name}: {data.reason}"),
        ]
        report.facts(console, rows)
        inference_report.show_score(console, score, then.result)
    return 4 if report.Output.lost else 0
