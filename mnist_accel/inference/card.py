"""The model card of an exported run: its own figures, and documented ones only where the two can be compared."""

from collections.abc import Iterable

from mnist_accel.recipe import Recipe, keys_of, with_shifts
from mnist_accel.runs.result import ClaimResult, RunResult
from mnist_accel.runs.weights_file import WeightsMeta

HUB_MNIST = "ylecun/mnist"
AUGMENTATION = ("rotation", "translation", "scale", "shear")


def model_card(result: RunResult, recipe: Recipe, meta: WeightsMeta, tolerance: float) -> str:
    parts = [
        front_matter(result, recipe, meta),
        f"# {recipe.name}\n",
        summary(result, meta),
        "## Figures\n",
        figures(result, recipe),
        "## Data and regime\n",
        regime(result, recipe),
        "## Limits\n",
        limits(result, meta),
        "## Use\n",
        use(meta, tolerance),
    ]
    return "\n".join(parts)


def front_matter(result: RunResult, recipe: Recipe, meta: WeightsMeta) -> str:
    """YAML, as model hubs read it; of values that this program has checked, no text of others'."""
    binary = meta.positive_class is not None
    metrics = ["accuracy", *(["f1"] if binary else [])]
    lines = ["license: mit", "pipeline_tag: image-classification"]
    on_mnist = result.dataset == "mnist"
    lines += listed("tags", ["image-classification", *(["mnist"] if on_mnist else []), "onnx", "safetensors"])
    lines += listed("datasets", [HUB_MNIST] if on_mnist else [])
    lines += listed("metrics", metrics)
    if not result.dry_run and result.correct is not None and result.total:
        values = {"accuracy": result.correct / result.total}
        if result.positive:
            values["f1"] = result.positive.f1 / 100
        kind, name = (HUB_MNIST, "MNIST") if on_mnist else ("synthetic", "digits drawn by mnist_accel")
        lines += ["model-index:", f"- name: {recipe.name}", "  results:", "  - task:"]
        lines += ["      type: image-classification", "    dataset:", f"      type: {kind}", f"      name: {name}"]
        lines += [f"      split: {'train' if recipe.validation else 'test'}", "    metrics:"]
        for metric, value in values.items():
            lines += [f"    - type: {metric}", f"      value: {value:.6f}"]
    return "\n".join(["---", *lines, "---\n"])


def listed(key: str, values: Iterable[str]) -> list[str]:
    items = [f"- {value}" for value in values]
    return [f"{key}:", *items] if items else []


def summary(result: RunResult, meta: WeightsMeta) -> str:
    asked = "which of the ten digits it is" if meta.positive_class is None else f"whether it is a {meta.positive_class}"
    said = f"A network of {result.params:,} parameters that looks at a 28 × 28 image and says {asked}.\n"
    if result.dry_run:
        said += "\n**A dry run: one training step, to see whether the program works. Its figures mean nothing.**\n"
    elif result.dataset != "mnist":
        said += "\n**Trained and scored on digits that the program draws itself; says nothing about MNIST.**\n"
    return said


def figures(result: RunResult, recipe: Recipe) -> str:
    scored = "held-out training" if recipe.validation else "test"
    images = f"{result.total:,} {scored} images{with_shifts(recipe.test_shifts)}"
    rows = [
        ("accuracy", f"{result.accuracy:.2f} % ({result.correct:,} of {images})"),
        ("loss", f"{result.test_loss:.4f}"),
    ]
    if result.positive:
        found = result.positive
        rows.append(("of yes", f"precision {found.precision:.2f} %, recall {found.recall:.2f} %, F1 {found.f1:.2f} %"))
    rows.append(("training", f"{result.train_seconds:.1f} s on {quoted(result.device)}"))
    text = "Of this run alone, after its last epoch, not its best:\n\n" + table("", "", rows)
    compared = [claim for claim in result.claims if claim.met is not None]
    # A parameter count holds whatever was trained; alone it would pass for a comparison of the run.
    if all(claim.name.startswith("parameters") for claim in compared):
        return text
    return text + "\nWhat is documented of this system, beside this run:\n\n" + documented(compared)


def documented(claims: Iterable[ClaimResult]) -> str:
    lines = ["| | documented | this run | |", "|---|---|---|---|"]
    for claim in claims:
        measured = "" if claim.measured is None else f"{claim.measured:,.6g}"
        lines.append(f"| {plain(claim.name)} | {plain(claim.documented)} | {measured} | {verdict(claim)} |")
    return "\n".join(lines) + "\n"


def verdict(claim: ClaimResult) -> str:
    return "met" if claim.met else "missed"


def regime(result: RunResult, recipe: Recipe) -> str:
    data = "MNIST" if result.dataset == "mnist" else "digits drawn by the program"
    augmented = ", ".join(f"{name} {getattr(recipe, name):g}" for name in AUGMENTATION if getattr(recipe, name))
    rows = [
        ("data", f"{data}: {result.train_images:,} images to train, {result.test_images:,} to score"),
        ("pixels", f"0 to 1, minus {recipe.mean:g}, divided by {recipe.std:g}; inside the network's files"),
        ("augmentation", augmented or "none"),
        ("epochs", f"{result.epochs}, batch {result.batch_size}, {counted(result.optimizer_steps, 'step')}"),
        ("optimizer", f"{recipe.optimizer}, lr {recipe.lr:g} {recipe.schedule}, weight decay {recipe.weight_decay:g}"),
        ("seed", str(result.seed)),
        ("precision", quoted(result.precision)),
        (
            "command",
            quoted(" ".join(["python launch.py", *words])) if (words := words_of(result)) else "a recipe of its own",
        ),
        ("versions", quoted(", ".join(f"{name} {version}" for name, version in result.versions.items()))),
    ]
    if result.commit:
        rows.append(("commit", quoted(result.commit)))
    return table("", "", rows)


def words_of(result: RunResult) -> list[str]:
    """What repeats it elsewhere; where data and runs lie on this machine is nobody's business."""
    told = {"recipe", "precision", "processes", "dry_run", *keys_of(Recipe)}
    words = [word for word in result.words_to_repeat if word.partition("=")[0] in told]
    on = ["dataset=synthetic"] * (result.dataset == "synthetic") + ["dry_run=true"] * result.dry_run
    return [*words, *(word for word in on if word not in words)] if words else []


def counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'s'[: number != 1]}"


def limits(result: RunResult, meta: WeightsMeta) -> str:
    binary = meta.positive_class is not None
    said = [
        "It knows one centred digit, light on black, scaled and placed as MNIST's are; "
        "`python -m mnist_accel predict` brings other images into that form.",
        f"It answers whatever it is shown{'' if binary else ': a letter, two digits or noise get a digit as well'}, "
        "and its probabilities are not calibrated.",
    ]
    if result.dataset == "mnist":
        said.append(
            "MNIST's digits were written by American census staff and students; other hands and other habits (a "
            "crossed seven, say) are hardly in it."
        )
    return "".join(f"- {line}\n" for line in said)


def use(meta: WeightsMeta, tolerance: float) -> str:
    binary = meta.positive_class is not None
    outputs = "1, above 0 for yes" if binary else "10"
    said = f"print(logits[:, 0] > 0)  # a {meta.positive_class}?" if binary else "print(logits.argmax(1))"
    return f"""Raw `uint8` images `[n, 28, 28]` in, logits `[n, {outputs}]` out, for any n.{shifts_of(meta)}
When the two files were written their outputs agreed to {tolerance:g} of the largest.

```python
import numpy, onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
images = numpy.zeros((5, 28, 28), numpy.uint8)
(logits,) = session.run(None, {{"images": images}})
{said}
```

```python
import mnist_accel, torch

network = mnist_accel.load("model.safetensors")
logits = network(torch.zeros(5, 28, 28, dtype=torch.uint8))
{said}
```
"""


def shifts_of(meta: WeightsMeta) -> str:
    if not meta.test_shifts:
        return ""
    pixels = counted(meta.test_shifts, "pixel")
    return (
        f"\nThese are the mean of five: of the image as it is, and shifted by {pixels} up, down, left and right. "
        "Both files do that themselves."
    )


def table(left: str, right: str, rows: Iterable[tuple[str, str]]) -> str:
    return "\n".join([f"| {left} | {right} |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]) + "\n"


def quoted(text: str) -> str:
    """Somebody's text as code, which no viewer takes for markup."""
    return f"`{plain(text)}`"


def plain(text: str) -> str:
    """In one line that ends neither its cell nor its quotes, and begins no tag."""
    text = "".join(sign if sign.isprintable() else "?" for sign in text)
    return "".join("?" if sign in "|`<>[]\\" else sign for sign in text)
