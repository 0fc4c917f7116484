"""Plants faults and sees whether a test notices: ``python tests/plant_faults.py seed=0 faults=40``.

A fault is a changed operator, constant, argument or condition, or a call left out, at a place drawn from the seed. Each
is planted alone in a copy of the project, and the test files that know its module run there, the nearest first, slow
tests aside, until one fails that does not fail without the fault; one that hangs has failed. What survives is no fault
after all (the program does the same with it), or a test is missing. ``only=PART`` takes modules whose path contains
PART, ``which=1,5`` some of the faults by their numbers, ``seconds=600`` lets the tests of each run for longer, which a
busy machine needs, and ``list=true`` shows the faults without planting them.
"""

import ast
import copy
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 150  # for the tests of one fault: undecided where none has failed by then
TEST_SECONDS = 60  # for one test, which has failed then
PAIRS = (
    (ast.Add, ast.Sub),
    (ast.Mult, ast.Div),
    (ast.And, ast.Or),
    (ast.BitAnd, ast.BitOr),
    (ast.Lt, ast.LtE),
    (ast.Gt, ast.GtE),
    (ast.Eq, ast.NotEq),
    (ast.In, ast.NotIn),
    (ast.Is, ast.IsNot),
)
OTHERS = {one: other for pair in PAIRS for one, other in (pair, pair[::-1])}
OTHERS |= {ast.FloorDiv: ast.Mult, ast.Mod: ast.Add, ast.Pow: ast.Mult}
# Real processes take long: they are asked only about what they are there for, a module or all below a folder.
STARTS_PROCESSES = {
    "test_launch": {"launch", "machine", "runs.trainer", "runs.run", "runs.result", "errors", "console.report"},
    "test_job": {"machine.job", "runs.resume", "training.eager_step"},
    "test_resume": {"runs.resume", "runs.checkpoint", "runs.folder"},
    "test_interruption": {"runs.interrupt", "machine.job", "training.exchange", "errors"},
    "test_bench": {"commands.bench", "machine.runtime"},
    "test_scaling": {"commands.scaling"},
    "test_profile_run": {"profiling"},
    "test_torchvision_import": {"data.torchvision_import"},
    "test_parallel_start": {"data.cache", "data.mnist", "runs.run"},
    "test_world_size": {"training.loop", "training.exchange", "runs.trainer", "models.layers"},
    "test_gpu_command": set(),
    "test_two_machines": set(),
    "test_gpu": set(),
}
WHOLE_RUNS = ("test_every_key", "test_result")  # in one process, and quick


@dataclass(frozen=True)
class Fault:
    path: Path  # below the root
    line: int
    kind: str
    before: str  # the lines
    after: str
    content: str  # of the whole file, with the fault


def faults_in(path: Path) -> Iterator[Fault]:
    source = (ROOT / path).read_text(encoding="utf-8")
    tree = ast.parse(source)
    starts = [0]
    for line in source.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def fault(kind: str, old: ast.AST, new: ast.AST | str) -> Fault:
        text = new if isinstance(new, str) else ast.unparse(new)
        begin = starts[old.lineno - 1] + old.col_offset
        end = starts[old.end_lineno - 1] + old.end_col_offset
        whole = source.encode()
        content = (whole[:begin] + text.encode() + whole[end:]).decode()
        last = old.end_lineno + content.count("\n") - source.count("\n")
        before = source.splitlines()[old.lineno - 1 : old.end_lineno]
        after = content.splitlines()[old.lineno - 1 : last]
        return Fault(path, old.lineno, kind, "\n".join(before), "\n".join(after), content)

    for node in code_of(tree):
        for kind, old, new in changes(node):
            yield fault(kind, old, new)


def code_of(node: ast.AST) -> Iterator[ast.AST]:
    """Whatever runs: no annotation, no decorator, no text, nothing that is for type checkers."""
    left_out = {"annotation", "returns", "decorator_list"}
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or name in left_out or isinstance(child, ast.JoinedStr):
                continue
            if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                continue
            yield child
            yield from code_of(child)


def changes(node: ast.AST) -> Iterator[tuple[str, ast.AST, ast.AST | str]]:
    new = copy.deepcopy(node)
    match node:
        case ast.BinOp() | ast.BoolOp() if type(node.op) in OTHERS:
            new.op = OTHERS[type(node.op)]()
            yield "operator", node, f"({ast.unparse(new)})"
        case ast.AugAssign() if type(node.op) in OTHERS:
            new.op = OTHERS[type(node.op)]()
            yield "operator", node, new
        case ast.Compare() if type(node.ops[0]) in OTHERS:
            new.ops[0] = OTHERS[type(node.ops[0])]()
            yield "operator", node, f"({ast.unparse(new)})"
        case ast.Constant(value=bool()):
            yield "constant", node, str(not node.value)
        case ast.Constant(value=int() | float()):
            yield "constant", node, repr(node.value * 2 or 1)
        case ast.If() | ast.While() | ast.IfExp():
            yield "condition", node.test, f"(not ({ast.unparse(node.test)}))"
        case ast.Expr(value=ast.Call()):
            yield "dropped call", node, "pass"
        case ast.Call():
            for index, keyword in enumerate(node.keywords):
                if keyword.arg:
                    less = copy.deepcopy(node)
                    del less.keywords[index]
                    yield "argument", node, less
            for index in range(len(node.args) - 1):
                swapped = copy.deepcopy(node)
                swapped.args[index : index + 2] = reversed(swapped.args[index : index + 2])
                yield "argument", node, swapped


def draw(seed: int, count: int, only: str) -> list[Fault]:
    """First the kind, then the place: there are ten times as many constants as calls that could be left out."""
    by_kind: dict[str, list[Fault]] = defaultdict(list)
    for path in [*sorted((ROOT / "mnist_accel").rglob("*.py")), ROOT / "launch.py"]:
        for fault in faults_in(path.relative_to(ROOT)):
            if only in str(path.relative_to(ROOT)):
                by_kind[fault.kind].append(fault)
    chance = random.Random(seed)
    drawn: list[Fault] = []
    while len(drawn) < count and any(by_kind.values()):
        kind = chance.choice(sorted(kind for kind, left in by_kind.items() if left))
        drawn.append(by_kind[kind].pop(chance.randrange(len(by_kind[kind]))))
    return drawn


def module_of(path: Path) -> str:
    """``mnist_accel/data/cache.py`` → ``data.cache``."""
    name = ".".join(path.with_suffix("").parts)
    return name.removeprefix("mnist_accel.").removesuffix(".__init__")


def imported(path: Path, modules: set[str]) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module or ""}
    return {name.removeprefix("mnist_accel.") for name in found} & modules


def known_by(test: str, module: str) -> bool:
    return any(f"{module}.".startswith(f"{name}.") for name in STARTS_PROCESSES[test])


def tests_of(module: str) -> list[str]:
    """The nearest first: the module's own, those that import it (or an importer, where none does), whole runs."""
    paths = {module_of(path.relative_to(ROOT)): path for path in (ROOT / "mnist_accel").rglob("*.py")}
    paths["launch"] = ROOT / "launch.py"
    known = set(paths)
    importers = {name for name, path in paths.items() if module in imported(path, known)}
    importers.add(module.rpartition(".")[0])  # a network is loaded by its name
    ranked = []
    for test in sorted((ROOT / "tests").glob("test_*.py")):
        mine = imported(test, known)
        own = test.stem == f"test_{module.rpartition('.')[2]}"
        slow = test.stem in STARTS_PROCESSES
        whole = test.stem in WHOLE_RUNS and not module.startswith("commands.")
        distance = 0 if own else 1 if module in mine else 2 if mine & importers else 3 if whole else 9
        if (own or known_by(test.stem, module)) if slow else distance < 9:
            ranked.append((slow and not own, whole, distance, str(test.relative_to(ROOT))))
    direct = any(distance < 2 for _, whole, distance, _ in ranked if not whole)
    return [name for slow, whole, distance, name in sorted(ranked) if slow or whole or distance < 2 or not direct]


def pytest(where: Path, seconds: float, *words: str) -> tuple[int | None, str]:
    """Its exit code, None where it took too long, and what it printed."""
    command = (sys.executable, "-m", "pytest", "-q", "--tb=no", "-p", "no:cacheprovider", f"--timeout={TEST_SECONDS}")
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(
            [*command, *words],
            cwd=where,
            env=os.environ | {"PYTHONPATH": str(where), "PYTHONDONTWRITEBYTECODE": "1"},
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with whatever a fault has left behind
            process.wait()
        out.seek(0)
        return code, out.read()


def left_behind(folder: str, names: list[str]) -> list[str]:
    results = ("runs",) if Path(folder) == ROOT else ()  # not the package of this name
    return [name for name in names if name.startswith(".") or name in ("__pycache__", *results)]


class Tests:
    """Run in a copy of the project, with a fault and without."""

    def __init__(self, folder: Path, seconds: float):
        self.seconds = seconds
        self.with_fault, self.without = folder / "with", folder / "without"
        for copied in (self.with_fault, self.without):
            shutil.copytree(ROOT, copied, ignore=left_behind)
        self.fails_anyway: dict[str, bool] = {}

    def notice(self, fault: Fault, files: list[str]) -> tuple[str, str]:
        """``caught`` and by what, ``survived``, or ``undecided``."""
        planted, until = self.with_fault / fault.path, time.monotonic() + self.seconds
        planted.write_text(fault.content, encoding="utf-8")
        try:
            while True:
                left_out = [f"--deselect={name}" for name, fails in self.fails_anyway.items() if fails]
                code, out = pytest(self.with_fault, until - time.monotonic(), "-x", *files, *left_out)
                if code is None or code == 0:
                    return "survived" if code == 0 else "undecided", ""
                failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - |$)", out, re.MULTILINE)
                if failed is None:
                    return "caught", (out.splitlines() or ["without a word"])[-1][:160]
                if not self.asked_without(failed[1]):
                    return "caught", failed[1][:160]
        finally:
            shutil.copy(self.without / fault.path, planted)

    def asked_without(self, test: str) -> bool:
        """Whether it fails without a fault too."""
        if test not in self.fails_anyway:
            self.fails_anyway[test] = pytest(self.without, self.seconds, test)[0] != 0
        return self.fails_anyway[test]


def main(argv: list[str]) -> int:
    typed = dict(word.partition("=")[::2] for word in argv)
    drawn = draw(int(typed.get("seed", 0)), int(typed.get("faults", 40)), typed.get("only", ""))
    which = [int(number) for number in typed["which"].split(",")] if "which" in typed else range(1, len(drawn) + 1)
    outcomes: dict[str, list[str]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as temporary:
        tests = Tests(Path(temporary), float(typed.get("seconds", SECONDS)))
        for number in which:
            fault = drawn[number - 1]
            name = f"{number}/{len(drawn)} {fault.path}:{fault.line} {fault.kind}"
            print(f"{name}\n  - {fault.before.strip()}\n  + {fault.after.strip()}", flush=True)
            if typed.get("list") == "true":
                continue
            began, files = time.monotonic(), tests_of(module_of(fault.path))
            outcome, by = tests.notice(fault, files)
            print(f"  {outcome} in {time.monotonic() - began:.0f} s by {len(files)} files  {by}", flush=True)
            outcomes[outcome].append(name)
    if outcomes:
        print("\n" + ", ".join(f"{len(names)} {outcome}" for outcome, names in outcomes.items()))
        print(*(f"{outcome}: {name}" for outcome in ("survived", "undecided") for name in outcomes[outcome]), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
