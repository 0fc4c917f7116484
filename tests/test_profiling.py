"""A trace's time goes to the layer that spent it: attribution, arithmetic, verdict; and hostile files cost one line."""

import gzip
import itertools
import json
import random
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode

from mnist_accel import models
from mnist_accel.errors import UserError
from mnist_accel.models import build_model
from mnist_accel.phase import PHASES
from mnist_accel.profiling import roofline, trace_file
from mnist_accel.profiling.collect import PLANNED, make_folder, naming_layers, plan
from mnist_accel.profiling.compare import compare
from mnist_accel.profiling.flops import shape_of
from mnist_accel.profiling.gradients import gradients, measure_gradients
from mnist_accel.profiling.layers import IDLE, Analysis, analyse
from mnist_accel.profiling.roofline import Roofline, measure_roofline, roofline_that_fits
from mnist_accel.profiling.summary import ProfileSummary, RankTimes, as_json, summarise, summary_beside
from mnist_accel.profiling.timeline import BACKWARD_NODE
from mnist_accel.profiling.trace_file import Event, find_traces, read_trace
from mnist_accel.profiling.verdict import Part, adding_up, find_verdict, sentence


def traced(
    network: nn.Module,
    folder: Path,
    *,
    steps: int = 3,
    batch: int = 8,
    annotated: bool = True,
    step: Callable[[], None] | None = None,
    **settings: Any,
) -> tuple[Path, profile]:
    """A trace of training steps on random images, with our annotations or as anybody would take it."""
    images, labels = torch.randn(batch, 1, 28, 28), torch.arange(batch) % 10
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)

    def phase(name: str) -> Any:
        return record_function(f"phase:{name}") if annotated else record_function("nothing of ours")

    def usual_step() -> None:
        with phase("forward"):
            logits = network(images)
        with phase("loss"):
            wide = logits.shape[1] == 10
            loss = F.cross_entropy(logits, labels) if wide else logits.square().mean()
        with phase("backward"):
            loss.backward()
        with phase("optimizer"):
            optimizer.step()
            optimizer.zero_grad()

    step = step or usual_step
    step()
    path = folder / "here.1.pt.trace.json"
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True, **settings) as profiler:
        for number in range(steps):
            with record_function(f"ProfilerStep#{number}"):
                if annotated:
                    with naming_layers(network):
                        step()
                else:
                    step()
    profiler.export_chrome_trace(str(path))
    return path, profiler


@pytest.fixture(scope="module", params=models.names())
def of_network(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Analysis, profile]:
    torch.manual_seed(0)
    network = build_model(request.param, 0.1).to(memory_format=torch.channels_last)
    path, profiler = traced(network, tmp_path_factory.mktemp(request.param))
    return network, analyse(read_trace(path)), profiler


# Attribution


def test_there_is_a_row_for_every_convolution_under_its_module_s_name(of_network: Any) -> None:
    network, analysis, _ = of_network
    modules = {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}
    assert [row.place.module for row in analysis.convolutions] == list(modules)
    for row, module in zip(analysis.convolutions, modules.values(), strict=True):
        assert row.shape is not None and row.calls == analysis.steps == 3
        assert row.shape.text.startswith(f"8×{module.in_channels}×")
        assert f" → {module.out_channels}×" in row.shape.text and f", {module.kernel_size[0]}²" in row.shape.text
        assert ("/" in row.shape.text, " pad " in row.shape.text) == (module.stride != (1, 1), module.padding != (0, 0))
        assert row.forward_us > 0 and row.backward_us > 0


def test_layers_add_up_to_the_profiler_s_own_totals(of_network: Any) -> None:
    _, analysis, profiler = of_network
    totals = {event.key: event.cpu_time_total for event in profiler.key_averages()}
    forward = sum(row.forward_us for row in analysis.convolutions)
    backward = sum(row.backward_us for row in analysis.convolutions)
    assert forward == pytest.approx(totals["aten::conv2d"], rel=0.05)
    assert backward == pytest.approx(totals["autograd::engine::evaluate_function: ConvolutionBackward0"], rel=0.05)


def test_backward_time_is_that_of_the_node_with_the_call_s_number(of_network: Any) -> None:
    """Read once more, by hand: the nodes come in the opposite order of the layers."""
    _, analysis, profiler = of_network
    nodes = [e for e in profiler.events() if e.name == "autograd::engine::evaluate_function: ConvolutionBackward0"]
    nodes.sort(key=lambda event: event.time_range.start)
    layers = len(analysis.convolutions)
    assert len(nodes) == 3 * layers
    for index, row in enumerate(reversed(analysis.convolutions)):
        by_hand = sum(node.time_range.elapsed_us() for node in nodes[index::layers])
        assert row.backward_us == pytest.approx(by_hand, rel=0.05)


def test_phases_and_parts_each_account_for_the_whole_step(of_network: Any) -> None:
    _, analysis, _ = of_network
    assert sum(analysis.phases.values()) == pytest.approx(analysis.total_us, rel=1e-6)
    assert sum(analysis.parts.values()) == pytest.approx(analysis.total_us, rel=1e-6)
    assert {"forward", "loss", "backward", "optimizer"} <= set(analysis.phases) <= {*PHASES, "outside of these"}
    by_kind: dict[str, float] = {}
    for owner, duration in analysis.parts.items():
        by_kind[owner.kind] = by_kind.get(owner.kind, 0.0) + duration
    assert by_kind["convolution forward"] == pytest.approx(sum(row.forward_us for row in analysis.convolutions))
    assert by_kind["other layers"] > 0 and by_kind["optimizer"] > 0 and by_kind["loss"] > 0


def test_the_first_convolution_has_no_input_gradient_and_the_others_have(of_network: Any) -> None:
    _, analysis, _ = of_network
    first, *others = analysis.convolutions
    assert first.input_flop == 0 and first.weight_flop == first.forward_flop > 0
    assert all(row.input_flop == row.weight_flop == row.forward_flop > 0 for row in others)


def test_a_trace_without_our_annotations_gives_the_same_rows(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build_model("onepoch", 0.1)
    path, profiler = traced(network, tmp_path, annotated=False)
    analysis = analyse(read_trace(path))
    assert [row.shape.text for row in analysis.convolutions] == ["8×1×28² → 5×26², 3²", "8×5×13² → 32×11², 3²"]
    totals = {event.key: event.cpu_time_total for event in profiler.key_averages()}
    node = "autograd::engine::evaluate_function: ConvolutionBackward0"
    assert sum(row.backward_us for row in analysis.convolutions) == pytest.approx(totals[node], rel=0.05)
    assert {"forward", "backward", "optimizer", "loss"} <= set(analysis.phases)
    assert summarise(analysis, None).convolutions[1].name == "conv2"


def test_a_trace_without_marked_steps_is_cut_at_the_optimizer_s(tmp_path: Path) -> None:
    network = build_model("is3", 0.0)
    path, _ = traced(network, tmp_path, steps=4, annotated=False)
    said = json.loads(path.read_text())
    for event in said["traceEvents"]:
        event["name"] = event.get("name", "").replace("ProfilerStep#", "around ")
    path.write_text(json.dumps(said))
    analysis = analyse(read_trace(path))
    assert analysis.steps == 3  # between four
    assert [row.calls for row in analysis.convolutions] == [3, 3]


def test_a_convolution_that_needs_no_gradient_is_not_given_the_next_one_s_backward(tmp_path: Path) -> None:
    """Both carry the same sequence number: only the second made a node."""
    teacher, student = nn.Conv2d(1, 2, 3), nn.Conv2d(1, 4, 3)
    images = torch.randn(2, 1, 8, 8)

    def step() -> None:
        with torch.no_grad():
            teacher(images)
        student(images).sum().backward()

    path, _ = traced(student, tmp_path, annotated=False, step=step)
    without, with_gradient = analyse(read_trace(path)).convolutions
    assert without.backward_us == 0 and without.weight_flop == 0
    assert with_gradient.backward_us > 0 and with_gradient.weight_flop > 0


def test_a_module_that_is_called_twice_has_two_rows(tmp_path: Path) -> None:
    twice = nn.Conv2d(2, 2, 3, padding=1)
    images = torch.randn(2, 2, 8, 8)
    path, _ = traced(nn.Sequential(twice), tmp_path, step=lambda: twice(twice(images)).sum().backward())
    rows = summarise(analyse(read_trace(path)), None).convolutions
    assert [row.name for row in rows] == ["conv1", "conv2"] and [row.module for row in rows] == ["0", "0"]
    assert [row.gflop_input_gradient for row in rows] == [0, rows[0].gflop_forward]


def test_autocast_counts_two_bytes_a_number_and_casts_belong_to_their_layer(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3))
    images = torch.randn(4, 1, 28, 28)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            output = network(images)
        output.sum().backward()

    path, profiler = traced(network, tmp_path, step=step)
    (row,) = analyse(read_trace(path)).convolutions
    numbers = 4 * 28**2 + 4 * 9 + 4 * 4 * 26**2
    assert row.bytes == pytest.approx(2 * numbers * 2)  # forward and for the weights' gradient
    outermost = [e for e in profiler.events() if e.name == "aten::conv2d" and e.cpu_parent.name != "aten::conv2d"]
    assert row.forward_us == pytest.approx(sum(e.time_range.elapsed_us() for e in outermost), rel=0.05)


def test_other_layers_are_named_by_their_module_and_in_a_foreign_trace_by_the_operation(tmp_path: Path) -> None:
    """Dropout's own operations are none that anybody would recognise it by."""
    torch.manual_seed(0)
    network = build_model("compact13k", 0.1).train()
    found = {}
    for annotated in (True, False):
        analysis = analyse(read_trace(traced(network, tmp_path, annotated=annotated)[0]))
        owners = [owner for owner in analysis.parts if owner.kind == "other layers"]
        found[annotated] = {
            phase: {owner.detail for owner in owners if owner.phase == phase} for phase in ("forward", "backward")
        }
        assert sum(analysis.parts.values()) == pytest.approx(analysis.total_us, rel=1e-6)
    leaves = {type(leaf).__name__ for leaf in network.modules() if not any(leaf.children())}
    assert {"Dropout", "BatchNorm2d"} <= leaves
    for phase in ("forward", "backward"):
        assert {"Dropout", "BatchNorm2d"} <= found[True][phase], phase
        assert not {"mul", "ge", "random", "batch_norm"} & found[True][phase], phase
        assert {"mul", "batch_norm"} <= found[False][phase], phase
    assert {"ge", "random"} <= found[False]["forward"]


def test_writing_a_checkpoint_between_two_steps_is_a_phase_and_a_part_of_its_own(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3))

    def step() -> None:
        network(torch.randn(2, 1, 8, 8)).sum().backward()
        with record_function("phase:checkpoint"):
            for _ in range(100):
                torch.save(network.state_dict(), tmp_path / "checkpoint")

    analysis = analyse(read_trace(traced(network, tmp_path, step=step)[0]))
    assert analysis.phases["checkpoint"] > analysis.total_us / 2
    said = find_verdict(analysis, ["conv1"])
    assert said.sentence.startswith("Writing checkpoints bounds this run: ")
    assert said.parts[0].ms == pytest.approx(analysis.phases["checkpoint"] / 3000)


# A GPU's trace, event by event


def gpu_trace(folder: Path) -> Path:
    """One step of 100 µs: backward on a thread of its own, kernels later than their launches, a hidden and an exposed
    all-reduce, and 30 µs in which the device has nothing to do."""

    def event(category: str, name: str, thread: int, start: float, duration: float, **details: Any) -> dict[str, Any]:
        return {"ph": "X", "cat": category, "name": name, "pid": 1, "tid": thread, "ts": start, "dur": duration} | {
            "args": {key.replace("_", " "): value for key, value in details.items()}
        }

    dims = [[8, 4, 10, 10], [6, 4, 3, 3], [6], [], [], [], [], [], []]
    said = ["", "", "", "[1, 1]", "[0, 0]", "[1, 1]", "False", "[0, 0]", "1"]
    gradient = [[8, 6, 8, 8], [8, 4, 10, 10], [6, 4, 3, 3], [], [], [], [], [], [], [], []]
    asked = ["", "", "", "[6]", "[1, 1]", "[0, 0]", "[1, 1]", "False", "[0, 0]", "1", "[False, True, True]"]
    half = ["c10::Half"] * 3
    events = [
        event("user_annotation", "ProfilerStep#7", 1, 0, 100),
        event("user_annotation", "phase:forward", 1, 5, 15),
        event("user_annotation", "layer:stem.conv", 1, 5, 10),
        event("cpu_op", "aten::conv2d", 1, 6, 8, Sequence_number=3, External_id=1),
        event("cpu_op", "aten::convolution", 1, 7, 6, **{"Sequence number": 3, "External id": 2, "Input Dims": dims})
        | {"args": {"Sequence number": 3, "Input Dims": dims, "Concrete Inputs": said, "Input type": half}},
        event("cuda_runtime", "cudaLaunchKernel", 1, 8, 1, correlation=11),
        event("cpu_op", "aten::relu", 1, 16, 3, Sequence_number=4, External_id=5),
        event("user_annotation", "phase:backward", 1, 25, 60),
        event("cpu_op", "autograd::engine::evaluate_function: ReluBackward0", 2, 26, 4, Sequence_number=4),
        event("cuda_runtime", "cudaLaunchKernel", 2, 27, 1, correlation=12),
        event("cpu_op", "autograd::engine::evaluate_function: ConvolutionBackward0", 2, 31, 9, Sequence_number=3),
        event("cpu_op", "aten::convolution_backward", 2, 32, 7)
        | {"args": {"Input Dims": gradient, "Concrete Inputs": asked, "Input type": half}},
        event("cuda_runtime", "cudaLaunchKernel", 2, 33, 1, correlation=13),
        event("kernel", "a convolution", 7, 20, 10, correlation=11, External_id=1),
        event("kernel", "relu", 7, 30, 5, External_id=5),  # an old trace: no launch, only the operation
        event("kernel", "relu backward", 7, 35, 5, correlation=12),
        event("kernel", "convolution backward", 7, 40, 20, correlation=13),
        event("kernel", "ncclDevKernel_AllReduce_Sum_f32_RING_LL", 20, 50, 20),  # 10 of 20 behind the one above
        event("kernel", "of an earlier step", 7, 70, 20, correlation=999),
    ]
    path = folder / "gpu.json"
    path.write_text(json.dumps({"traceEvents": events, "distributedInfo": {"rank": 1, "world_size": 2}}))
    return path


def test_on_a_gpu_the_device_s_time_counts_and_its_idleness_is_launch_overhead(tmp_path: Path) -> None:
    trace = read_trace(gpu_trace(tmp_path))
    assert (trace.rank, trace.world_size) == (1, 2)
    analysis = analyse(trace)
    assert analysis.on_gpu and analysis.total_us == 100
    (row,) = analysis.convolutions
    assert (row.place.module, row.forward_us, row.backward_us) == ("stem.conv", 10, 20)
    numbers = 8 * 4 * 10**2 + 6 * 4 * 9 + 8 * 6 * 8**2
    assert row.bytes == 2 * numbers * 2 and row.input_flop == 0
    assert analysis.phases == {"forward": 15, "backward": 25, "all-reduce": 10, IDLE: 30, "outside of these": 20}
    said = find_verdict(analysis, ["stem.conv"])
    assert {part.name: part.percent for part in said.parts} == {
        "launch overhead": 30,
        "stem.conv's backward": 20,
        "operations outside of layers": 20,
        "stem.conv's forward": 10,
        "other layers": 10,
        "exposed all-reduce": 10,
    }
    assert said.sentence.startswith("Launch overhead bounds this run: 30% of the step")
    assert analysis.eager


def test_on_a_gpu_idleness_while_the_cpu_does_something_else_is_that_and_steps_share_no_kernel(tmp_path: Path) -> None:
    path = gpu_trace(tmp_path)
    said = json.loads(path.read_text())
    for name, thread, start, duration in (
        ("enumerate(DataLoader)#x", 1, 0, 4),  # before the first kernel
        ("phase:checkpoint", 1, 86, 14),  # from 90 on nothing runs
        ("ProfilerStep#8", 1, 100, 50),
    ):
        said["traceEvents"].append(
            an_event(cat="user_annotation", name=name, tid=thread, ts=start, dur=duration, args={})
        )
    said["traceEvents"].append(an_event(cat="kernel", name="ncclDevKernel_AllReduce", tid=20, ts=95, dur=15, args={}))
    said["traceEvents"].append(an_event(cat="kernel", name="k", tid=7, ts=102, dur=4, args={}))
    path.write_text(json.dumps(said))
    analysis = analyse(read_trace(path))
    assert analysis.total_us == 150
    assert analysis.phases == {
        "data": 4,
        "forward": 15,
        "backward": 25,
        "all-reduce": 10 + 5 + 2 + 4,
        "checkpoint": 5,
        IDLE: 16 + 40,
        "outside of these": 20 + 4,
    }


@pytest.mark.parametrize(
    ("plain_ms", "factor", "idle_us"),
    [(None, 1, 30), (0.09, 1, 20), (0.2, 1, 130), (0.035, 0.5, 0)],  # kernels take 70 of the 100 µs
)
def test_on_a_gpu_kernels_keep_their_times_and_idleness_gives_way(
    plain_ms: float | None, factor: float, idle_us: float, tmp_path: Path
) -> None:
    plain = RankTimes(0, 0.1, plain_ms) if plain_ms else None
    summary = summarise(analyse(read_trace(gpu_trace(tmp_path))), None, plain)
    (row,) = summary.convolutions
    assert (row.forward_ms, row.backward_ms) == pytest.approx((0.010 * factor, 0.020 * factor))
    assert row_times(summary).get("launch overhead", 0) == pytest.approx(idle_us)
    assert summary.step_ms == pytest.approx(plain_ms or 0.1) and summary.scale == (factor if plain else None)


def gpu_steps(folder: Path, starts: Sequence[float], change: Callable[[int, dict[str, Any]], None]) -> Analysis:
    """Of several such steps, each ``change``d event by event."""
    path = gpu_trace(folder)
    first = json.loads(path.read_text())["traceEvents"]
    events = []
    for number, start in enumerate(starts):
        for event in json.loads(json.dumps(first)):
            numbers = event["args"]
            numbers |= {key: numbers[key] + 1000 * number for key in numbers if key in ("correlation", "External id")}
            event["ts"] += start
            change(number, event)
            events.append(event)
    path.write_text(json.dumps({"traceEvents": events}))
    return analyse(read_trace(path))


def test_a_kernel_counts_for_the_step_that_launched_it(tmp_path: Path) -> None:
    """The device is a step behind. The second of three steps is disturbed; its convolution runs in the third."""

    def change(number: int, event: dict[str, Any]) -> None:
        if number == 1 and event["name"].startswith("ProfilerStep"):
            event["dur"] = 300
        if event["name"] == "a convolution":
            event |= {"ts": (120, 420, 520)[number], "dur": (10, 90, 10)[number]}

    summary = summarise(gpu_steps(tmp_path, (0, 100, 400), change), None)
    assert summary.set_aside == 1 and summary.convolutions[0].forward_ms == pytest.approx(0.010)


def test_a_kernel_s_time_and_spread_are_its_own_where_another_hides_it(tmp_path: Path) -> None:
    def change(number: int, event: dict[str, Any]) -> None:
        if event["name"] == "convolution backward":
            event["dur"] = 10 if number < 3 else 16
        if event["name"] == "relu backward":
            event["dur"] = 25  # until that is long over

    (row,) = summarise(gpu_steps(tmp_path, range(0, 700, 100), change), None).convolutions
    assert (row.forward_ms, row.forward_spread_ms) == pytest.approx((0.010, 0))
    assert (row.backward_ms, row.backward_spread_ms) == pytest.approx((0.010, 0.006))


def test_waiting_for_the_other_ranks_is_exposed_all_reduce(tmp_path: Path) -> None:
    """Behind the last node of backward, which exchanges the last gradients, DDP waits; then the loss is summed up."""

    def event(category: str, name: str, start: float, duration: float, **details: Any) -> dict[str, Any]:
        return an_event(cat=category, name=name, ts=start, dur=duration, args=details)

    node = "autograd::engine::evaluate_function: "
    events = [
        event("user_annotation", "ProfilerStep#1", 0, 100),
        event("user_annotation", "phase:forward", 0, 20),
        event("cpu_op", "aten::conv2d", 2, 10, **{"Sequence number": 1}),
        event("user_annotation", "phase:backward", 20, 60),
        event("cpu_op", f"{node}ConvolutionBackward0", 22, 20, **{"Sequence number": 1}),
        event("cpu_op", f"{node}torch::autograd::AccumulateGrad", 44, 8),
        event("cpu_op", "c10d::allreduce_", 46, 6),
        event("user_annotation", "phase:all-reduce", 80, 7),
    ]
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"traceEvents": events}))
    analysis = analyse(read_trace(path))
    assert analysis.phases == {"forward": 20, "backward": 32 - 6, "all-reduce": 6 + 28 + 7, "outside of these": 13}
    assert row_times(summarise(analysis, None))["exposed all-reduce"] == pytest.approx(41)


def test_a_captured_graph_is_noticed(tmp_path: Path) -> None:
    path = gpu_trace(tmp_path)
    path.write_text(path.read_text().replace("cudaLaunchKernel", "cudaGraphLaunch"))
    assert not summarise(analyse(read_trace(path)), None).eager


# Arithmetic


@pytest.mark.parametrize(
    ("module", "images", "flop", "numbers"),
    [
        # 64 × 26² × 5 outputs of 9 products each; 64 × 28² inputs, 45 weights, 64 × 5 × 26² outputs
        (nn.Conv2d(1, 5, 3), (64, 1, 28, 28), 2 * 64 * 676 * 5 * 9, 50_176 + 45 + 216_320),
        (nn.Conv2d(16, 32, 5, stride=2, padding=2), (4, 16, 28, 28), 2 * 4 * 196 * 32 * 400, None),
        (nn.Conv2d(8, 16, 3, dilation=2, bias=False), (2, 8, 14, 14), 2 * 2 * 100 * 16 * 72, None),
        (nn.Conv2d(8, 8, 3, groups=8, padding=1), (2, 8, 14, 14), 2 * 2 * 196 * 8 * 9, None),
        (nn.Conv2d(4, 6, (1, 3)), (2, 4, 5, 9), 2 * 2 * 5 * 7 * 6 * 12, None),
        (nn.Conv2d(4, 6, 3, padding="same"), (2, 4, 5, 9), 2 * 2 * 45 * 6 * 36, None),
        (nn.Conv2d(4, 6, 3, padding="valid"), (2, 4, 5, 9), 2 * 2 * 21 * 6 * 36, None),
        (nn.Conv1d(4, 6, 3), (2, 4, 9), 2 * 2 * 7 * 6 * 12, None),
    ],
)
def test_flops_equal_the_arithmetic_on_paper_and_torch_s_own_count(
    module: nn.Module, images: tuple[int, ...], flop: int, numbers: int | None, tmp_path: Path
) -> None:
    inputs = torch.randn(images, requires_grad=True)

    def step() -> Tensor:
        output = module(inputs)
        output.sum().backward()
        return output

    path, _ = traced(module, tmp_path, steps=1, step=step)
    (row,) = analyse(read_trace(path)).convolutions
    assert (row.forward_flop, row.weight_flop, row.input_flop) == (flop, flop, flop)
    if numbers is not None:
        assert row.bytes == 3 * 4 * numbers
    with FlopCounterMode(display=False) as counter:
        module(inputs)
    assert counter.get_total_flops() == flop
    if getattr(module, "groups", 1) == 1:  # torch counts the weights' gradient of groups too often
        with FlopCounterMode(display=False) as counter:
            step()
        assert counter.get_total_flops() == 3 * flop


@pytest.mark.parametrize(("module", "axes"), [(nn.ConvTranspose2d(4, 4, 3, stride=2), 2), (nn.Conv3d(4, 6, 3), 3)])
def test_a_convolution_of_another_kind_has_times_but_no_arithmetic(
    module: nn.Module, axes: int, tmp_path: Path
) -> None:
    images = torch.randn(2, 4, *[5] * axes)
    path, _ = traced(module, tmp_path, steps=1, step=lambda: module(images).sum().backward())
    (row,) = summarise(analyse(read_trace(path)), Roofline("fp32", 100.0, 1.0)).convolutions
    assert row.forward_ms > 0 and row.backward_ms > 0
    assert (row.shape, row.gflop_forward, row.gflops, row.roofline_percent) == ("", None, None, None)


def test_what_no_convolution_can_be_has_no_shape() -> None:
    found = []
    for images, weights, stride in (
        ([2, 4, 5, 5], [4, 4, 3, 3], "[1, 1]"),
        ([2, 4, 5, 5], [4, 4, 3, 3], "[0, 0]"),
        ([2, 4, 5, 5], [4, 3, 3, 3], "[1, 1]"),  # four channels for three
        ([2, 4, 2, 2], [4, 4, 3, 3], "[1, 1]"),  # a kernel larger than the image
    ):
        said = ["", "", "", stride, "[0, 0]", "[1, 1]", "False"]
        details = {"Input Dims": [images, weights], "Concrete Inputs": said}
        found.append(shape_of(Event("aten::convolution", "cpu_op", ("1", "1"), 0.0, 1.0, details)))
    assert [shape and shape.text for shape in found] == ["2×4×5² → 4×3², 3²", None, None, None]


def test_achieved_intensity_and_percent_of_the_roof_follow_from_the_times(tmp_path: Path) -> None:
    path, _ = traced(build_model("onepoch", 0.0), tmp_path)
    analysis = analyse(read_trace(path))
    summary = summarise(analysis, Roofline("fp32", 100.0, 0.01))
    row = summary.convolutions[1]
    flop = 3 * 2 * 8 * 121 * 32 * 45  # passes
    assert row.gflops == pytest.approx(flop / row.ms / 1e6)
    moved = 3 * 4 * (8 * 5 * 169 + 32 * 45 + 8 * 32 * 121)
    assert row.intensity == pytest.approx(flop / moved)
    assert row.roofline_percent == pytest.approx(100 * row.gflops / (0.01 * row.intensity))
    assert row.roofline_percent > 100, "printed as it is"
    first = summary.convolutions[0]
    weighted = (first.ms * first.roofline_percent + row.ms * row.roofline_percent) / (first.ms + row.ms)
    assert summary.convolutions_roofline_percent == pytest.approx(weighted)
    assert min(first.ms / row.ms, row.ms / first.ms) < 0.9, "so that weights make a difference"
    assert summarise(analysis, None).convolutions[1].roofline_percent is None


CPU = torch.device("cpu")


@pytest.fixture
def small_roof(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "SIDE", {"cpu": 64})
    monkeypatch.setattr(roofline, "COPIED", {"cpu": 2**20})


@pytest.mark.usefixtures("small_roof")
def test_the_machine_s_reach_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    for precision in ("fp32", "bf16"):
        measured = measure_roofline(CPU, precision)
        assert measured.matmul_gflops > 0 and measured.copy_gb_s > 0
        assert measured.attainable_gflops(1e-9) < measured.attainable_gflops(1e9) == measured.matmul_gflops
    ticks = itertools.count()  # milliseconds
    monkeypatch.setattr(roofline, "synchronised_clock", lambda device: next(ticks) / 1000)
    measured = measure_roofline(CPU, "fp32")
    assert measured.matmul_gflops == pytest.approx(2 * 64**3 / 1e-3 / 1e9)
    assert measured.copy_gb_s == pytest.approx(2 * 2**20 / 1e-3 / 1e9)


@pytest.mark.usefixtures("small_roof")
@pytest.mark.parametrize(
    ("fitting", "says"),
    [
        (64, ""),
        (32, "the roof was measured on less than usual: memory is short"),
        (16, "the roof was measured on less than usual: memory is short"),
        (8, "there was no memory to measure the roof in"),
    ],
)
def test_where_memory_is_short_the_roof_is_measured_on_less_or_not_at_all(
    fitting: int, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ones = torch.ones

    def short_of_memory(*sizes: int, **words: Any) -> Tensor:
        if len(sizes) == 2 and sizes[0] > fitting:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 256.00 MiB")
        return ones(*sizes, **words)

    monkeypatch.setattr(torch, "ones", short_of_memory)
    measured, why = roofline_that_fits(CPU, "fp32")
    assert why == says and (measured is None) == (fitting == 8)


def test_memory_that_no_machine_has_leaves_no_roof_and_any_other_error_is_raised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(roofline, "SIDE", {"cpu": 2**26})  # a quarter of it: 2**50 bytes
    assert roofline_that_fits(CPU, "fp32") == (None, "there was no memory to measure the roof in")
    monkeypatch.setattr(roofline, "SIDE", {"cpu": -8})
    with pytest.raises(RuntimeError, match="negative"):
        roofline_that_fits(CPU, "fp32")


# The typical step


def made_up(path: Path, steps: Sequence[Mapping[str, float]]) -> Analysis:
    """A CPU's trace of a convolution, its backward, an update, and perhaps a checkpoint: each for so many µs, and
    nothing for the rest of the step."""
    events, start = [], 0.0
    for number, lengths in enumerate(steps):
        place = start
        for phase, name, category in (
            ("forward", "aten::conv2d", "cpu_op"),
            ("backward", f"{BACKWARD_NODE}ConvolutionBackward0", "cpu_op"),
            ("optimizer", "Optimizer.step#SGD.step", "user_annotation"),
            ("checkpoint", "writing", "user_annotation"),
        ):
            if phase in lengths:
                inside = {"ts": place, "dur": lengths[phase]}
                linked = {"Sequence number": number} if category == "cpu_op" else {}
                events.append(an_event(cat="user_annotation", name=f"phase:{phase}", args={}, **inside))
                events.append(an_event(cat=category, name=name, args=linked, **inside))
                place += lengths[phase]
        place += lengths["nothing"]
        step = {"cat": "user_annotation", "name": f"ProfilerStep#{number}", "ts": start, "dur": place - start}
        events.append(an_event(args={}, **step))
        start = place
    path.write_text(json.dumps({"traceEvents": events}))
    return analyse(read_trace(path))


USUAL = {"forward": 10.0, "backward": 20.0, "optimizer": 2.0, "nothing": 8.0}
# A neighbour's job lies on another piece in each of these, too short to be noticed in the step; and on one it is long.
DISTURBED = [USUAL, *({**USUAL, name: us + 6} for name, us in USUAL.items()), {**USUAL, "optimizer": 150.0}, USUAL]


def row_times(summary: ProfileSummary) -> dict[str, float]:
    return {part.name: part.ms * 1000 for part in summary.verdict.parts}


def test_rows_are_of_the_undisturbed_step_as_long_as_a_step_without_the_profiler(tmp_path: Path) -> None:
    lucky = {**USUAL, "backward": 12.0}  # one of ten is none to count on
    analysis = made_up(tmp_path / "x.json", [*DISTURBED, lucky, *DISTURBED])
    summary = summarise(analysis, None, RankTimes(0, 0.040, 0.020))
    assert (summary.steps, summary.set_aside, summary.scale) == (15, 2, 0.5)
    assert summary.step_ms == pytest.approx(0.020)
    names = ("conv1's backward", "conv1's forward", "Python between the operations", "optimizer")
    assert row_times(summary) == pytest.approx(dict(zip(names, (10, 5, 4, 1), strict=True)))
    assert [part.percent for part in summary.verdict.parts] == [50, 25, 20, 5]
    (row,) = summary.convolutions
    assert (row.forward_ms, row.backward_ms) == pytest.approx((0.005, 0.010))
    assert (row.forward_share, row.backward_share) == pytest.approx((25, 50))
    assert {phase.name: round(phase.share, 6) for phase in summary.phases} == {
        "forward": 25,
        "backward": 50,
        "optimizer": 5,
        "outside of these": 20,
    }


def test_a_trace_alone_is_not_scaled_but_long_steps_are_set_aside(tmp_path: Path) -> None:
    summary = summarise(made_up(tmp_path / "x.json", [*DISTURBED, USUAL, USUAL]), None)
    assert (summary.steps, summary.set_aside, summary.scale) == (9, 1, None)
    assert summary.step_ms == pytest.approx(0.043) and summary.verdict.parts[-1].percent == 5  # between 40 and 46


@pytest.mark.parametrize(("every", "share"), [(1, 100.0), (4, 25.0)])
def test_checkpoints_are_no_disturbance_and_come_on_top_of_the_step(every: int, share: float, tmp_path: Path) -> None:
    steps = [{**USUAL, "checkpoint": 100.0} if number % every == 0 else USUAL for number in range(8)]
    summary = summarise(made_up(tmp_path / "x.json", steps), None, RankTimes(0, 0.040, 0.020))
    assert (summary.set_aside, summary.scale) == (0, 0.5)
    assert summary.step_ms == pytest.approx(0.020 + share / 1000)
    assert row_times(summary)["writing checkpoints"] == pytest.approx(share)
    assert row_times(summary)["conv1's backward"] == pytest.approx(10)


def test_what_only_some_steps_do_is_a_mean(tmp_path: Path) -> None:
    """As the update is, where gradients are gathered over several steps."""
    without = {name: us for name, us in USUAL.items() if name != "optimizer"}
    summary = summarise(made_up(tmp_path / "x.json", [USUAL, without, without, without] * 2), None)
    assert row_times(summary)["optimizer"] == pytest.approx(0.5, rel=0.02) and summary.set_aside == 0


def test_percentages_of_any_steps_add_up_to_100_and_phases_to_the_step(tmp_path: Path) -> None:
    draw = random.Random(0)
    for _ in range(50):
        steps = [
            {name: us * draw.lognormvariate(0, 1) for name, us in USUAL.items()} for _ in range(draw.randint(1, 9))
        ]
        plain = draw.choice((None, RankTimes(0, 1.0, draw.uniform(0.001, 1))))
        summary = summarise(made_up(tmp_path / "x.json", steps), None, plain)
        assert sum(part.percent for part in summary.verdict.parts) == 100
        for ms in ([part.ms for part in summary.verdict.parts], [phase.ms for phase in summary.phases]):
            assert sum(ms) == pytest.approx(summary.step_ms)
        assert not plain or summary.step_ms == pytest.approx(plain.plain_ms)


# Verdict


def test_percentages_add_up_to_100_whatever_the_times() -> None:
    draw = random.Random(0)
    for _ in range(2_000):
        count = draw.randint(1, 30)
        kinds: tuple[Callable[[], float], ...] = (draw.random, lambda: 1.0, lambda: 10 ** draw.uniform(-9, 9))
        values = [draw.choice(kinds)() for _ in range(count)]
        percents = adding_up(values)
        assert sum(percents) == 100 and min(percents) >= 0
        whole = sum(values)
        assert all(abs(percent - 100 * value / whole) < 1 for percent, value in zip(percents, values, strict=True))
    assert adding_up([]) == [] and adding_up([0.0]) == [0]


def test_the_verdict_names_the_largest_part(of_network: Any) -> None:
    _, analysis, _ = of_network
    names = [f"conv{number + 1}" for number in range(len(analysis.convolutions))]
    said = find_verdict(analysis, names)
    assert sum(part.percent for part in said.parts) == 100
    assert sum(part.ms for part in said.parts) == pytest.approx(analysis.total_us / analysis.steps / 1000)
    assert [part.ms for part in said.parts] == sorted((part.ms for part in said.parts), reverse=True)
    if said.parts[0].name != "other layers":
        assert said.sentence.lower().startswith(said.parts[0].name.lower())
    assert {f"{name}'s {way}" for name in names for way in ("forward", "backward")} <= {p.name for p in said.parts}


def test_the_verb_agrees_with_what_bounds_the_run() -> None:
    other, loss = Part("operations outside of layers", 1.0, 60), Part("loss", 0.5, 40)
    assert sentence([other, loss], []).startswith("Operations outside of layers bound this run: 60%")
    assert sentence([loss, other], []).startswith("Loss bounds this run: 40%")
    layers = [Part("other layers", 1.0, 100)]
    named = [Part("relu", 1.0, 99), Part("avg_pool2d", 0.001, 0)]
    assert sentence(layers, named) == "Layers other than convolutions bound this run: 100% of the step (relu 99%)."


# When


def test_what_is_planned_fits_into_the_epoch_and_has_every_part() -> None:
    for left in range(200):
        planned = plan(left)
        assert len(planned) <= left
        if left < len(PLANNED):
            assert planned == []
            continue
        assert list(dict.fromkeys(planned)) == list(PLANNED), "every part, once, in this order"
    assert {what: plan(199).count(what) for what in PLANNED} == PLANNED


def test_two_profiles_within_a_second_get_two_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda form: "now")
    assert [make_folder("is3")[0] for _ in range(3)] == [f"profiles/is3-now{end}" for end in ("", "-2", "-3")]


# Two traces


def test_a_comparison_matches_by_name_and_shape_and_lists_the_rest(tmp_path: Path) -> None:
    path, _ = traced(build_model("onepoch", 0.0), tmp_path)
    summary = summarise(analyse(read_trace(path)), None)
    other = analyse(read_trace(path))
    other.convolutions[1].shape = None
    compared = compare(summarise(other, None), summary)
    assert {change.name: change.word for change in compared.layers} == {
        "conv1 forward": "same",
        "conv1 backward": "same",
    }
    assert compared.only_here == ["conv2 "] and compared.only_there == ["conv2 8×5×13² → 32×11², 3²"]
    assert compared.step.factor == 1


@pytest.mark.parametrize(
    ("longer", "spread", "plain_spread_ms", "word"),
    [
        (1.3, 0.0, 0.0, "slower"),
        (1.04, 0.0, 0.0, "same"),  # within a twentieth
        (1.3, 4.0, 0.0, "same"),  # the steps of each trace differ by more than the two traces
        (1.3, 2.0, 0.0, "slower"),
        (1.3, 0.0, 0.020, "same"),  # the steps without the profiler do
        (0.7, 0.0, 0.0, "faster"),
        (0.7, 4.0, 0.0, "same"),
    ],
)
def test_a_change_is_one_beyond_the_spread_of_the_steps(
    longer: float, spread: float, plain_spread_ms: float, word: str, tmp_path: Path
) -> None:
    """The middle half of the steps lies within ``spread`` µs."""

    def summary(forward: float) -> ProfileSummary:
        steps = [{**USUAL, "forward": forward + spread * offset} for offset in (0, 0, 0, 1, 1, 1, 1)]
        plain = RankTimes(0, 1.0, (30 + forward) / 1000, plain_spread_ms)
        return summarise(made_up(tmp_path / "x.json", steps), None, plain)

    forward, backward = compare(summary(10 * longer), summary(10)).layers
    assert forward.factor == pytest.approx(longer) and (forward.word, backward.word) == (word, "same")


# Files that are none of ours


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def an_event(**changes: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": "cpu_op", "name": "aten::conv2d", "pid": 1, "tid": 1, "ts": 1.0, "dur": 2.0} | changes


def with_event(**changes: Any) -> str:
    return json.dumps({"traceEvents": [an_event(**changes)]})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "cut off, or no JSON"),
        (b"\x00\xff\xfe", "no JSON"),
        (b'{"\xff": 1}', "no JSON"),
        (b"[1, 2]", "no list of traceEvents"),
        (b'{"a": 1}', "no list of traceEvents"),
        (b'{"traceEvents": 7}', "no list of traceEvents"),
        (b'{"traceEvents": [', "cut off"),
        (b'{"traceEvents": [{"ph": "X"', "cut off"),
        (b'{"traceEvents": []}', "holds no operation"),
        (b'{"traceEvents": [1, null, "x", {}, {"ph": 3}, {"ph": "X", "cat": "cpu_op"}]}', "holds no operation"),
        (with_event(ts="soon"), "ts='soon', no number"),
        (with_event(dur=None), "dur='None', no number"),
        (with_event(ts=True), "ts='True', no number"),
        (with_event(dur=-5), "ends before it begins"),
        ('{"traceEvents": [{"ph": "X", "cat": "cpu_op", "name": "x", "ts": NaN, "dur": 1}]}', "no JSON"),
        ('{"traceEvents": [{"ph": "X", "cat": "cpu_op", "name": "x", "ts": 1e999, "dur": 1}]}', "no number"),
        ('{"traceEvents": [' + "9" * 5000 + "]}", "no JSON"),
        ('{"traceEvents": ' + nested(100_000) + "}", "recursion limit"),
        (gzip.compress(b'{"traceEvents": []}')[:-6], "cut off or damaged"),
        (b"\x1f\x8b" + b"rubbish" * 9, "cut off or damaged"),
        (gzip.compress(b"")[:10] + b"\xff" * 20, "cut off or damaged"),
    ],
)
def test_a_foreign_or_damaged_file_costs_one_line(content: bytes | str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError) as error:
        analyse(read_trace(path))
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value) and len(str(error.value)) < 400
    assert says in str(error.value)


def test_no_more_of_a_file_is_read_than_a_trace_may_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_file, "LARGEST_TRACE", 2**20)
    path = tmp_path / "x.json"
    whole = with_event().encode().ljust(2**20)
    for content in (whole, gzip.compress(whole)):
        path.write_bytes(content)
        assert len(read_trace(path).events) == 1
    for content in (whole.ljust(2**26), gzip.compress(whole.ljust(2**26))):
        path.write_bytes(content)
        tracemalloc.start()
        with pytest.raises(UserError, match="larger than 1 MB unpacked"):
            read_trace(path)
        assert tracemalloc.get_traced_memory()[1] < 2**23
        tracemalloc.stop()


ESCAPE = "\x1b[2J\x9b\u202e"  # what a terminal takes for a command
ODD = (ESCAPE, None, True, "x", "[1,", -1, 2**70, 1.5, [], [[]], [[1, "x"]], [["a"]], {}, [None], ["[1, 1]"], [[[1]]])


def test_odd_values_within_an_event_never_raise(tmp_path: Path) -> None:
    """A trace of a real network in which anything may stand where a number, a list or a name should."""
    path, _ = traced(build_model("onepoch", 0.1), tmp_path, steps=1)
    said = json.loads(path.read_text())
    events = said["traceEvents"]
    draw = random.Random(0)
    for _ in range(60):
        broken = json.loads(json.dumps(events))
        for event in broken:
            details = event.get("args")
            if isinstance(details, dict) and draw.random() < 0.5:
                for key in details:
                    if draw.random() < 0.5:
                        details[key] = draw.choice(ODD)
            if draw.random() < 0.02:
                event["args"] = draw.choice(ODD)
            if draw.random() < 0.02:
                event[draw.choice(("tid", "pid", "cat", "ph"))] = draw.choice(ODD)
        (tmp_path / "odd.json").write_text(json.dumps({"traceEvents": broken, "distributedInfo": draw.choice(ODD)}))
        with suppress(UserError):
            as_json(summarise(analyse(read_trace(tmp_path / "odd.json")), Roofline("fp32", 1.0, 1.0)))


def test_no_name_of_a_trace_or_a_summary_commands_the_terminal(tmp_path: Path) -> None:
    path, _ = traced(build_model("onepoch", 0.1), tmp_path, steps=1)
    said = json.loads(path.read_text())
    for event in said["traceEvents"]:
        event["name"] = event.get("name", "").replace("layer:", f"layer:x{ESCAPE}").replace("relu", f"relu{ESCAPE}")
    path.write_text(json.dumps(said))
    text = as_json(summarise(analyse(read_trace(path)), None, machine={f"cpu{ESCAPE}": [ESCAPE]}))
    (tmp_path / "summary.json").write_text(text)
    summary, _ = summary_beside(path)
    assert summary is not None and summary.machine == {"cpu?[2J??": ["?[2J??"]}
    assert summary.convolutions[0].module.startswith("x?[2J??")
    said["traceEvents"].append(an_event(name=ESCAPE, dur=-1))
    path.write_text(json.dumps(said))
    with pytest.raises(UserError) as error:
        read_trace(path)
    assert str(error.value).isprintable()


def test_folders(tmp_path: Path) -> None:
    for missing in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(UserError) as error:
            find_traces(missing)
        assert "\n" not in str(error.value)
    for name in ("rank10.5.pt.trace.json.gz", "rank2.5.pt.trace.json.gz", "rank0.5.pt.trace.json.gz", "summary.json"):
        (tmp_path / name).write_text("{}")
    assert [path.name.partition(".")[0] for path in find_traces(tmp_path)] == ["rank0", "rank2", "rank10"]


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"roofline": {"matmul_gflops": "x"}}', nested(50_000), '{"steps": NaN}', "\udcff"]
)
def test_a_damaged_summary_beside_a_trace_is_passed_over(content: str, tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_bytes(content.encode(errors="surrogateescape"))
    found, why = summary_beside(tmp_path / "x.json")
    assert found is None and why.endswith("does not tell what its machine reaches")


def test_a_summary_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path, _ = traced(build_model("is3", 0.0), tmp_path)
    summary = summarise(analyse(read_trace(path)), Roofline("fp32", 10.0, 5.0), trace=path.name)
    (tmp_path / "summary.json").write_text(as_json(summary))
    assert summary_beside(path) == (summary, "")
    (tmp_path / "summary.json").write_text(as_json(summary).replace('"copy_gb_s": 5.0', '"copy_gb_s": 0.0'))
    assert summary_beside(path)[0] is None, "nothing can be in percent of it"


# The two gradients


def test_backward_divides_as_its_two_gradients_take_when_asked_for_alone(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(1, 16, 3), nn.Conv2d(16, 4, 3, groups=4, padding=1), nn.Conv2d(4, 2, 26))
    path, _ = traced(network, tmp_path, step=lambda: network(torch.randn(8, 1, 28, 28)).square().mean().backward())
    analysis, before = analyse(read_trace(path)), torch.get_rng_state()
    assert [row.weight_share for row in analysis.convolutions] == [1.0, None, None], "the trace does not tell"
    measure_gradients(analysis, network)
    assert torch.equal(before, torch.get_rng_state()), "the next epoch's order would be another"
    rows = summarise(analysis, None).convolutions
    assert rows[0].input_gradient_ms == 0
    for row in rows:
        assert row.weight_gradient_ms is not None and row.input_gradient_ms is not None
        assert row.weight_gradient_ms + row.input_gradient_ms == pytest.approx(row.backward_ms)
        assert 0 < row.weight_gradient_ms <= row.backward_ms


def test_each_gradient_is_asked_for_alone_and_right(tmp_path: Path) -> None:
    """What is timed is what autograd computes: the same sums, where every number is one."""
    network = nn.Conv2d(6, 4, 3, stride=2, padding=1, groups=2)
    images = torch.ones(2, 6, 9, 8, requires_grad=True)
    path, _ = traced(network, tmp_path, step=lambda: network(images).sum().backward())
    (row,) = analyse(read_trace(path)).convolutions
    assert row.shape is not None
    network.zero_grad()
    images.grad = None
    network(images).sum().backward()
    of_weights, of_input = gradients(row.shape, network)
    nothing, weights, _ = of_weights()  # type: ignore[misc]
    inputs, nothing_either, _ = of_input()  # type: ignore[misc]
    assert nothing is None and nothing_either is None
    assert network.weight.grad is not None and torch.allclose(weights, network.weight.grad)
    assert images.grad is not None and torch.allclose(inputs, images.grad, atol=1e-6)


def test_on_a_gpu_the_kernels_names_tell_the_gradients_apart(tmp_path: Path) -> None:
    path = gpu_trace(tmp_path)
    content = json.loads(path.read_text())
    for event in content["traceEvents"]:
        if event["name"] == "convolution backward":
            event |= {"name": "sm80_xmma_wgrad_implicit_gemm", "dur": 15}
        if event["name"] == "aten::convolution_backward":
            event["args"]["Concrete Inputs"][-1] = "[True, True, True]"
    assert analyse_text(tmp_path, content).convolutions[0].weight_share is None, "the input's has another name"
    more = an_event(cat="kernel", name="cudnn::dgrad_engine", ts=55, dur=5, args={"correlation": 13})
    content["traceEvents"].append(more)
    assert analyse_text(tmp_path, content).convolutions[0].weight_share == 0.75


def analyse_text(folder: Path, content: Any) -> Analysis:
    path = folder / "changed.json"
    path.write_text(json.dumps(content))
    return analyse(read_trace(path))
