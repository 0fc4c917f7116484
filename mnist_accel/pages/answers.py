"""What the network answered: confusion matrix, accuracy by class, and its most confidently wrong answers."""

import torch

from mnist_accel.pages import curves
from mnist_accel.pages.charts import heat_table
from mnist_accel.pages.digits import data_uri
from mnist_accel.pages.page import Html, joined, table, tag
from mnist_accel.runs.evaluation import Evaluation
from mnist_accel.runs.record import RunRecord

DIGITS = [str(digit) for digit in range(10)]


def confusion(record: RunRecord, kept: Evaluation) -> Html:
    return one_class(record, kept) if record.positive_class is not None else ten_classes(kept)


def ten_classes(kept: Evaluation) -> Html:
    labels, answers = kept.labels.long(), kept.predictions(None)
    counts = torch.bincount(10 * labels + answers, minlength=100).view(10, 10)
    rows = []
    for digit in range(10):
        hits, there, said = counts[digit, digit].item(), counts[digit].sum().item(), counts[:, digit].sum().item()
        rows.append((digit, f"{there:,}", f"{there - hits:,}", share(hits, there), share(hits, said)))
    matrix = heat_table(counts.tolist(), DIGITS, label="Confusion matrix", row="true digit", column="answer")
    columns = ("digit", "images", "wrong", "accuracy %", "precision %")
    return beside(
        ("Confusion", matrix),
        ("By class", table(columns, rows, label="Accuracy by class", numbers=(1, 2, 3, 4))),
    )


def one_class(record: RunRecord, kept: Evaluation) -> Html:
    digit = record.positive_class
    says_yes, labels = kept.predictions(digit), kept.labels.long()
    is_yes = labels.eq(-1 if digit is None else digit)
    counts = [
        [int((is_yes == truth).logical_and(says_yes == answer).sum()) for answer in (True, False)]
        for truth in (True, False)
    ]
    names = (f"a {digit}", f"no {digit}")
    matrix = heat_table(counts, names, label="Confusion matrix", row="truth", column="answer")
    found = record.result.positive
    scores = Html()
    if found:
        rows = [(name, f"{getattr(found, name.lower()):.2f}") for name in ("Precision", "Recall", "F1")]
        scores = table((f"of the answer “a {digit}”", "%"), rows, label="Precision and recall", numbers=(1,))
    rows_by_digit = []
    for each in range(10):
        mine = labels == each
        wrong = int((says_yes[mine] != is_yes[mine]).sum())
        there = int(mine.sum())
        rows_by_digit.append((each, f"{there:,}", f"{wrong:,}", share(there - wrong, there)))
    by_digit = table(
        ("digit", "images", "wrong", "accuracy %"), rows_by_digit, label="Accuracy by digit", numbers=(1, 2, 3)
    )
    return beside((f"Is it a {digit}?", joined([matrix, tag("div", scores, class_="below")])), ("By digit", by_digit))


def share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.2f}" if whole else "–"


def beside(*parts: tuple[str, Html]) -> Html:
    return tag("div", *(tag("div", tag("h3", title), body) for title, body in parts), class_="beside")


def worst(record: RunRecord, kept: Evaluation) -> Html:
    """Each with what it is, what it was taken for, and how sure the network was of either."""
    positive = record.positive_class
    shown = []
    for place, image in zip(kept.wrong_index.tolist(), kept.wrong_images, strict=True):
        label = int(kept.labels[place])
        if positive is None:
            scores = kept.logits[place].softmax(0)
            answer = str(int(scores.argmax()))
            said, truth = f"{100 * scores.max():.1f} %", f"a {label}: {100 * scores[label]:.1f} %"
        else:
            yes = torch.sigmoid(kept.logits[place, 0]).item()
            answer = "yes" if yes > 0.5 else "no"
            said, truth = f"{100 * max(yes, 1 - yes):.1f} %", f"a {label}"
        title = f"{curves.scored_on(record)} image {place:,}: a {label}, answered {answer}"
        picture = tag(
            "img", src=data_uri([bytes(row.tolist()) for row in image]), alt=title, title=title, width=28, height=28
        )
        shown.append(tag("li", picture, tag("b", answer, " ", tag("span", said)), tag("small", truth)))
    return tag("ul", *shown, class_="digits")
