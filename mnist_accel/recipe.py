"""What can be chosen: a Recipe is learning (it changes the result), RunOptions is running (how it happens here).

Every field carries its bounds and its help text, so that the command line, ``--help`` and the checks share one source.
A recipe is data: the files in ``recipes/`` hold one ``Recipe(...)`` literal each, or one ``replace(...)`` of another.
"""

from dataclasses import MISSING, fields
from dataclasses import dataclass as plain_dataclass
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False)


@plain_dataclass(frozen=True)
class Needs:
    """Marks a field that only matters beside certain values of another; typed without them, it is refused."""

    key: str
    values: tuple[str, ...]


SGD = Needs("optimizer", ("sgd",))
ADAM = Needs("optimizer", ("adam", "adamw"))
WARMED_UP = Needs("schedule", ("onecycle", "linear"))
STEPPED = Needs("schedule", ("step",))
CLASSES = Needs("loss", ("cross_entropy",))
BINARY = Needs("loss", ("binary",))
REAL_DATA = Needs("dataset", ("auto", "mnist"))
MOST_SHIFTS = 8  # pixels: MNIST's digits begin 4 from the edge, and further off they are cut


def option(description: str, **bounds: Any) -> Any:
    return Field(description=description, **bounds)


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Claim:
    """One published figure of the documented system, and what counts as meeting it.

    ``epoch`` ties an accuracy to the epoch the document names (else the last one counts); ``device`` keeps a time
    claim from being held against a run on other hardware.
    """

    metric: Literal["parameters", "accuracy", "train_seconds", "train_loss", "test_loss"]
    relation: Literal["=", "<", "<=", ">", ">="]
    value: float
    epoch: int | None = None
    device: Literal["cpu", "cuda"] | None = None
    note: str = ""

    @property
    def label(self) -> str:
        label = {"accuracy": "accuracy %", "train_seconds": "training seconds"}.get(
            self.metric, self.metric.replace("_", " ")
        )
        if self.epoch:
            label += f" at epoch {self.epoch}"
        if self.device:
            label += f" on {'a GPU' if self.device == 'cuda' else 'a CPU'}"
        return label + (f" ({self.note})" if self.note else "")

    @property
    def documented(self) -> str:
        sign = {"=": "", "<": "< ", "<=": "≤ ", ">": "> ", ">=": "≥ "}[self.relation]
        whole = self.value == int(self.value)
        return sign + (f"{int(self.value):,}" if whole else f"{self.value:g}")


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Measured:
    """What we saw on real MNIST: means over seeds at the last epoch, and the command that printed them."""

    accuracy: float
    seeds: int
    command: str
    spread: float | None = None  # standard deviation over the seeds


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Recipe:
    """Everything that changes what is learned, and what is known about it."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    model: str
    loss: Literal["cross_entropy", "binary"] = "cross_entropy"
    claims: tuple[Claim, ...] = ()
    measured: Measured | None = None

    epochs: Annotated[int, option("passes over the training images", ge=1, le=100_000)]
    batch_size: Annotated[int, option("images a step over all processes together", ge=1)]
    optimizer: Annotated[Literal["sgd", "adam", "adamw"], option("update rule")]
    lr: Annotated[float, option("learning rate; the peak, where a schedule moves it", gt=0)]
    momentum: Annotated[float, option("momentum", ge=0, lt=1), SGD] = 0.9
    nesterov: Annotated[bool, option("Nesterov's form of momentum"), SGD] = False
    beta1: Annotated[float, option("what the mean of gradients keeps of itself a step", ge=0, lt=1), ADAM] = 0.9
    beta2: Annotated[float, option("what the mean of squared gradients keeps of itself", ge=0, lt=1), ADAM] = 0.999
    weight_decay: Annotated[float, option("weight decay (L2; decoupled with adamw)", ge=0)] = 0.0
    schedule: Annotated[
        Literal["constant", "onecycle", "linear", "step"], option("how lr moves, counted in optimizer steps")
    ] = "constant"
    warmup: Annotated[float, option("fraction of all steps in which lr rises", ge=0, lt=1), WARMED_UP] = 0.2
    step_epochs: Annotated[int, option("epochs between two drops of lr", ge=1), STEPPED] = 5
    step_factor: Annotated[float, option("what each drop multiplies lr by", gt=0, le=1), STEPPED] = 0.1
    label_smoothing: Annotated[float, option("share of the target spread over all classes", ge=0, lt=1), CLASSES] = 0.0
    clip_norm: Annotated[float, option("largest gradient norm; 0 leaves gradients alone", ge=0)] = 0.0
    ema: Annotated[float, option("decay of the weights' moving average; 0 evaluates the weights", ge=0, lt=1)] = 0.0
    positive_class: Annotated[int, option("the digit that counts as yes", ge=0, le=9), BINARY] = 3
    first_filters: Annotated[
        Literal["learned", "whitening"],
        option("the first convolution's: learned, or fixed to what whitens patches of training images"),
    ] = "learned"
    dropout: Annotated[float, option("probability that dropout zeroes a value", ge=0, lt=1)]
    sync_batchnorm: Annotated[bool, option("batch norm over all processes' images, not each its own")] = False
    rotation: Annotated[float, option("random rotation, up to ± this many degrees", ge=0, le=180)] = 0.0
    translation: Annotated[float, option("random shift, up to ± this fraction of the image", ge=0, le=1)] = 0.0
    scale: Annotated[float, option("random size, 1 ± up to this much", ge=0, lt=1)] = 0.0
    shear: Annotated[float, option("random slant, up to ± this many degrees", ge=0, lt=90)] = 0.0
    mean: Annotated[float, option("subtracted from pixels between 0 and 1")] = 0.1307
    std: Annotated[float, option("what they are divided by then", gt=0)] = 0.3081
    validation: Annotated[
        int, option("training images held out and reported on instead of the test set", ge=0, lt=60_000)
    ] = 0
    test_shifts: Annotated[
        int,
        option(
            "pixels that an image is shifted up, down, left and right when it is scored, its five outputs averaged; "
            "0 scores it once",
            ge=0,
            le=MOST_SHIFTS,
        ),
    ] = 0
    seed: Annotated[int, option("of weights, order, augmentation and dropout", ge=0, lt=2**32)] = 0


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class RunOptions:
    """Everything about running here; none of it is meant to change what is learned."""

    dataset: Annotated[
        Literal["auto", "mnist", "synthetic"],
        option("auto takes MNIST where it can be had, else digits that this program draws"),
    ] = "auto"
    data_dir: Annotated[
        str | None,
        option("the folder that holds MNIST/raw, only read (default: $MNIST_ACCEL_DATA)", min_length=1),
        REAL_DATA,
    ] = None
    out: Annotated[str | None, option("the folder of the run (default: runs/RECIPE/TIME)", min_length=1)] = None
    device: Annotated[Literal["auto", "cpu", "cuda"], option("auto takes a GPU where there is one")] = "auto"
    precision: Annotated[
        Literal["auto", "fp32", "tf32", "fp16", "bf16"], option("auto takes what the launcher says, else fp32")
    ] = "auto"
    processes: Annotated[
        int | None, option("how many processes to start, by torch's own launcher (default: this one)", ge=1, le=1024)
    ] = None
    restarts: Annotated[
        int, option("times that all processes start anew, from the newest checkpoint, if one is lost", ge=0, le=1000)
    ] = 0
    threads: Annotated[int, option("CPU threads a process; 0 shares the cores out", ge=0, le=1024)] = 0
    resident_mb: Annotated[
        int | None,
        option("how many MB of GPU memory the images may take, else the host's (default: all free)", ge=0),
    ] = None
    graph: Annotated[
        Literal["auto", "off"],
        option("auto lets one process on a GPU replay its training step as one captured CUDA graph, off never does"),
    ] = "auto"
    resume: Annotated[
        str | None,
        option(
            "auto (the newest unfinished run of this recipe, or that in out), a run's folder, or a checkpoint",
            min_length=1,
        ),
    ] = None
    checkpoint_every: Annotated[int, option("steps between checkpoints; 0: at each epoch's end only", ge=0)] = 0
    timeout: Annotated[
        float, option("seconds that one process may keep the others waiting before the run ends", ge=1, le=86_400)
    ] = 600.0
    profile: Annotated[
        bool, option("trace a few steps: verdict, phases, a table of the convolutions, a trace in profiles/")
    ] = False
    tracker: Annotated[
        Literal["off", "tensorboard", "wandb", "mlflow", "aim", "clearml", "comet_ml", "dvclive", "swanlab", "trackio"],
        option("who is told losses and accuracies besides, into RUN/tracking where it keeps files"),
    ] = "off"
    dry_run: Annotated[bool, option("one step, one evaluation batch, all files: does it work here?")] = False


def is_evidence_its_own(recipe: Recipe) -> bool:
    """Figures were measured with the recipe that their command names. A copy of it, which may learn differently, has
    shown nothing yet, nor does its document speak of the copy."""
    return recipe.measured is None or f"recipe={recipe.name}" in recipe.measured.command.split()


def with_shifts(test_shifts: int) -> str:
    """To follow what is told of a network or its figures: scored once, it would have others."""
    return f", scored with shifts of {test_shifts} pixel{'s'[: test_shifts > 1]}" if test_shifts else ""


# The network and its loss belong together, and what was published or measured is no setting.
NOT_OVERRIDABLE = ("name", "model", "loss", "claims", "measured")


@plain_dataclass(frozen=True)
class Key:
    """A field as the command line sees it."""

    name: str
    adapter: TypeAdapter[Any]
    description: str
    kind: str
    default: Any
    needs: Needs | None


@cache
def keys_of(owner: type) -> dict[str, Key]:
    """The keys that a user may type for ``Recipe`` or ``RunOptions``, in the order of the source."""
    declared = get_type_hints(owner, include_extras=True)
    keys = {}
    for field in fields(owner):
        if field.name in NOT_OVERRIDABLE:
            continue
        annotation = declared[field.name]
        plain, help_and_bounds, *rest = get_args(annotation)
        keys[field.name] = Key(
            name=field.name,
            adapter=TypeAdapter(annotation, config=CONFIG),
            description=help_and_bounds.description,
            kind=describe_type(plain),
            default=None if field.default is MISSING else field.default,
            needs=next((item for item in rest if isinstance(item, Needs)), None),
        )
    return keys


def describe_type(annotation: Any) -> str:
    """``int``, ``float``, ``true|false``, ``text`` or the words to choose from."""
    names = {int: "int", float: "float", bool: "true|false", str: "text"}
    if annotation in names:
        return names[annotation]
    return "|".join(names.get(choice, str(choice)) for choice in get_args(annotation) if choice is not type(None))
