"""A CUDA graph's stand-in on a CPU: what a step calls is recorded once, and replayed on the very same memory.

As in a graph, whatever came from the host while recording is fixed (a number, a choice, a new tensor's place), and only
what the recorded tensors hold can differ from one replay to the next.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mnist_accel.data.batches import Selection
from mnist_accel.training.graph_step import GraphStep


class Recording(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Sequence[Any], Mapping[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    @property
    def names(self) -> set[str]:
        return {func.overloadpacket.__name__ for func, *_ in self.calls}

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, result in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and memory(old) != memory(new):
                    old.copy_(new)


def memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class RecordedStep(GraphStep):
    """``GraphStep`` on a CPU as it is on a GPU, but for the graph."""

    def __init__(self, *args: Any, **how: Any):
        super().__init__(*args, **how)
        self.captures = True
        self.recording = Recording()
        self.replays = 0

    def capture(self) -> Callable[[], None]:
        def recorded(chosen: Selection) -> Tensor:
            self.recording = Recording()
            with self.recording:
                self.captured = self.body(chosen)
            return self.captured

        # A capture runs nothing. This one has to, so it keeps the last of the steps that leave no trace.
        assert self.fixed is not None
        self.try_out(recorded, self.fixed)

        def replay() -> None:
            self.replays += 1
            self.recording.replay()

        return replay
