"""The report of a run, from its folder alone: figures, curves, answers, times, settings."""

import shlex
from collections.abc import Iterator
from pathlib import Path

from mnist_accel.errors import printable
from mnist_accel.pages import answers, curves
from mnist_accel.pages.charts import share_bar
from mnist_accel.pages.pad import Pad, pad_of
from mnist_accel.pages.page import Html, Section, command, document, facts, joined, pill, table, tag
from mnist_accel.recipe import Recipe, RunOptions, keys_of, with_shifts
from mnist_accel.runs.record import RunRecord, Setting, read_record
from mnist_accel.runs.result import RunResult
from mnist_accel.training.state import EpochStats

STATES = {"finished": "good", "failed": "bad", "interrupted": "bad"}


def page_of(folder: Path, asked: str = "") -> str:
    """UserError where the folder holds no run that can be believed."""
    record = read_record(folder, asked or str(folder))
    title, drawn = f"{record.result.recipe}, {headline(record.result)}", pad_of(record)
    scripts, data = (drawn.scripts, drawn.data) if drawn else ((), None)
    return document(title, header(record), sections(record, drawn), scripts, data)


def headline(result: RunResult) -> str:
    return "not scored" if result.accuracy is None else f"{result.accuracy:.2f} %"


def header(record: RunRecord) -> Html:
    result = record.result
    state = pill("dry run", "plain") if result.dry_run else pill(result.status, STATES.get(result.status, "plain"))
    line = f"{result.model}, {result.params:,} parameters, {name_of(record.folder)}"
    error = tag("p", result.error, class_="sub") if result.error else ""
    shown = [(f"accuracy, {curves.scored_on(record)}", headline(result))]
    if result.positive:
        shown.append(("F1", f"{result.positive.f1:.2f} %"))
    shown += [
        ("training", seconds(result.train_seconds)),
        ("images a second", f"{result.images_per_second:,.0f}"),
        ("epochs", f"{len(result.history)} of {result.epochs}" if unfinished(result) else f"{result.epochs:,}"),
        ("data", result.dataset),
    ]
    return joined([tag("h1", result.recipe, " ", state), tag("p", line, class_="sub"), error, facts(shown, "figures")])


def unfinished(result: RunResult) -> bool:
    return len(result.history) != result.epochs


def sections(record: RunRecord, drawn: Pad | None) -> Iterator[Section]:
    result, kept = record.result, record.evaluation
    yield Section("Learning", learning(record), "learning")
    if result.claims:
        yield Section("Documented beside this run", claims(result), "claims", result.why_not_compared)
    if kept is not None:
        yield Section("Answers", answers.confusion(record, kept), "answers", scored(record))
        if len(kept.wrong_index):
            yield Section("Most confidently wrong", answers.worst(record, kept), "wrong", wrong(record))
    elif record.without:
        yield Section("Answers", tag("p", f"Not kept: {printable(record.without)}.", class_="note"), "answers")
    if drawn:
        yield Section(
            "Draw a digit", drawn.body, "draw", "The network of this run lies in this page and answers while you draw."
        )
    yield Section("Where the time went", times(result), "time")
    yield Section("Settings", settings(record), "settings")
    yield Section("Again", again(record), "again")


def learning(record: RunRecord) -> Html:
    history, scored = record.result.history, curves.scored_on(record)
    if not history:
        return tag("p", "No epoch was finished.", class_="note")
    if len(history) == 1:
        (only,) = history
        rows = [
            ("loss", f"{only.train_loss:.4f}", f"{only.test_loss:.4f}"),
            ("accuracy %", percent(only.train_accuracy), percent(only.accuracy)),
        ]
        figures = table(("", "training", scored), rows, label="The epoch", numbers=(1, 2))
        return tag("div", figures, curves.of_one(record), class_="beside")
    columns = ("epoch", "training loss", f"{scored} loss", "training %", f"{scored} %", "lr at its end", "seconds")
    shown = curves.thinned(history)
    title = f"{'All' if len(shown) == len(history) else f'{len(shown):,} of'} {len(history):,} epochs"
    epochs = table(columns, map(row_of, shown), label="Epoch by epoch", numbers=range(1, len(columns)))
    return joined([curves.of_one(record), tag("details", tag("summary", title), epochs)])


def row_of(stats: EpochStats) -> tuple[str, ...]:
    losses = f"{stats.train_loss:.4f}", f"{stats.test_loss:.4f}"
    accuracies = percent(stats.train_accuracy), percent(stats.accuracy)
    return (f"{stats.epoch}", *losses, *accuracies, f"{stats.lr:.3g}", f"{stats.train_seconds:.2f}")


def percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def claims(result: RunResult) -> Html:
    verdicts = {True: pill("pass", "good"), False: pill("fail", "bad"), None: Html()}
    rows = [(claim.name, claim.documented, claim.shown, verdicts[claim.met]) for claim in result.claims]
    return table(("", "documented", "this run", ""), rows, label="Documented beside this run", numbers=(1, 2))


def scored(record: RunRecord) -> str:
    result = record.result
    images = f"{result.total:,} {curves.scored_on(record)} images"
    return f"{result.correct:,} of {images} after the last epoch{with_shifts(record.test_shifts)}."


def wrong(record: RunRecord) -> str:
    assert record.evaluation is not None and record.result.correct is not None and record.result.total is not None
    count, shown = record.result.total - record.result.correct, len(record.evaluation.wrong_index)
    many = (
        f"The {shown} of {count:,} wrong answers that the network was surest of"
        if shown < count
        else "Every wrong answer"
    )
    return f"{many}: what it said, its probability, what the image is."


def times(result: RunResult) -> Html:
    """A resumed run's training was in part another process's, whose start nobody measured."""
    parts = [
        ("training", result.train_seconds),
        ("evaluation", result.eval_seconds),
        ("warm-up", result.warmup_seconds),
    ]
    rest = result.total_seconds - sum(value for _, value in parts)
    if not result.resumed_from and rest > 0:
        parts.append(("start-up, data and files", rest))
    note = (
        "Training and evaluation of all sessions; what each needed to start is left out." if result.resumed_from else ""
    )
    return share_bar(
        "Where the time went", [(name, value, seconds(value)) for name, value in parts if value], unit_text=note
    )


def seconds(value: float) -> str:
    if value < 60:
        return f"{value:.2f} s"
    minutes, left = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {left:02} s"


def settings(record: RunRecord) -> Html:
    """What changes the result, how it ran, and with what; typed ones are marked."""
    result, typed = record.result, record.typed
    matter = {key: value for key, value in record.settings.items() if matters(key, record)}
    learned = [(key, value) for key, value in matter.items() if key in keys_of(Recipe)]
    ran = [(key, value) for key, value in matter.items() if key not in keys_of(Recipe)]
    images = f"{result.train_images:,} to train, {result.test_images:,} to score"
    effect = [
        ("device", f"{result.device} × {result.world_size} process{'es'[: 2 * (result.world_size > 1)]}"),
        ("threads, precision", f"{result.threads}, {result.precision}"),
        ("data", f"{result.dataset}: {result.dataset_reason}"),
        ("images", f"{images}{with_shifts(record.test_shifts)}"),
        ("optimizer steps", f"{result.optimizer_steps:,}"),
        *((name, value) for name in ("began", "commit", "profile") if (value := getattr(result, name))),
        *((name, version) for name, version in result.versions.items()),
    ]
    parts = [tag("h3", "In effect"), facts(effect)]
    if learned:
        parts += [tag("h3", "Learning"), marked(learned, typed), tag("h3", "Running"), marked(ran, typed)]
    if typed & record.settings.keys():
        parts.append(tag("p", "Marked: typed for this run.", class_="note below"))
    return joined(parts)


def matters(key: str, record: RunRecord) -> bool:
    """Momentum says nothing about a run with Adam."""
    needs = (keys_of(Recipe) | keys_of(RunOptions))[key].needs
    return needs is None or record.settings.get(needs.key, record.loss) in needs.values


def marked(rows: list[tuple[str, Setting]], typed: set[str]) -> Html:
    shown = [
        tag("div", tag("dt", key), tag("dd", spelt(value)), class_="typed" if key in typed else usual(value))
        for key, value in rows
    ]
    return tag("dl", *shown, class_="facts")


def usual(value: Setting) -> str | None:
    """Quietly: what is off."""
    return "usual" if value in (None, False, 0) else None


def spelt(value: Setting) -> str:
    if value is None:
        return "–"
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def again(record: RunRecord) -> Html:
    words = record.result.words_to_repeat
    if not words:
        return tag(
            "p", "Started in Python, with a recipe that is no file: recipe.json holds all its settings.", class_="note"
        )
    return command(printable(shlex.join(["python", "launch.py", *words])))


def name_of(folder: Path) -> str:
    """The last two parts, as in ``onepoch/20260101-120000``."""
    return "/".join(folder.absolute().parts[-2:])
