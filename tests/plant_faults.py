"""Plants faults and sees whether a test notices: ``python tests/plant_faults.py seed=0 faults=40``.

A fault is a changed operator, constant, argument or condition, or a call left out, at a place drawn from the seed. Each
is planted alone in a copy of the project, and the test files that know its module run there, slow tests aside. What
survives is no fault after all (the program does the same with it), or a test is missing. ``only=PART`` takes modules
whose path contains PART, ``list=true`` shows the faults without planting them.
"""

import ast
import copy
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 300  # for the tests of one fault
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
# Real processes take long: they are asked only about what they are there for.
STARTS_PROCESSES = {
    "test_launch": {"launch", "machine.runtime", "runs.trainer", "runs.run"},
    "test_resume": {"runs.resume", "runs.checkpoint"},
    "test_interruption": {"runs.interrupt"},
    "test_bench": {"commands.bench", "machine.runtime"},
    "test_scaling": {"commands.scaling"},
    "test_profile_run": {"profiling.collect", "profiling.summary", "profiling.folder"},
    "test_torchvision_import": {"data.torchvision_import"},
    "test_parallel_start": {"data.cache"},
    "test_world_size": {"training.loop", "models.layers"},
    "test_two_machines": set(),
    "test_gpu": set(),
}
WHOLE_RUNS = ("test_every_key.py", "test_result.py")  # in one process, and quick


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


def tests_of(module: str) -> list[str]:
    """The nearest first: the module's own, those that import it (or an importer, where none does), whole runs."""
    paths = {module_of(path.relative_to(ROOT)): path for path in (ROOT / "mnist_accel").rglob("*.py")}
    paths["launch"] = ROOT / "launch.py"
    known = set(paths)
    importers = {name for name, path in paths.items() if module in imported(path, known)}
    ranked = []
    for test in sorted((ROOT / "tests").glob("test_*.py")):
        mine = imported(test, known)
        own = test.stem == f"test_{module.rpartition('.')[2]}"
        slow = test.stem in STARTS_PROCESSES
        distance = 0 if own else 1 if module in mine else 2 if mine & importers else 9
        if module in STARTS_PROCESSES[test.stem] if slow else distance < 9:
            ranked.append((slow, distance, str(test.relative_to(ROOT))))
    near = [entry for entry in sorted(ranked) if entry[0] or entry[1] < 2] or sorted(ranked)
    whole_runs = [str(Path("tests", name)) for name in WHOLE_RUNS if (ROOT / "tests" / name).is_file()]
    return list(dict.fromkeys([*(name for *_, name in near), *whole_runs]))


def run_tests(where: Path, tests: list[str]) -> tuple[str, str]:
    """``caught`` and by what, ``survived``, or ``undecided`` after so much time."""
    environment = os.environ | {"PYTHONPATH": str(where), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider", *tests]
    process = subprocess.Popen(
        command, cwd=where, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        out, _ = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.communicate()
        return "undecided", ""
    lines = [line for line in out.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if process.returncode == 0:
        return "survived", ""
    return "caught", (lines or out.splitlines() or ["without a word"])[0][:160]


def main(argv: list[str]) -> int:
    typed = dict(word.partition("=")[::2] for word in argv)
    drawn = draw(int(typed.get("seed", 0)), int(typed.get("faults", 40)), typed.get("only", ""))
    survived: list[tuple[str, Fault]] = []
    with tempfile.TemporaryDirectory() as temporary:
        where = Path(temporary) / "project"
        shutil.copytree(ROOT, where, ignore=shutil.ignore_patterns(".*", "runs", "__pycache__"))
        for number, fault in enumerate(drawn, 1):
            tests = tests_of(module_of(fault.path))
            print(f"{number}/{len(drawn)} {fault.path}:{fault.line} {fault.kind}", flush=True)
            print(f"  - {fault.before.strip()}\n  + {fault.after.strip()}", flush=True)
            if typed.get("list") == "true":
                continue
            began = time.monotonic()
            (where / fault.path).write_text(fault.content, encoding="utf-8")
            outcome, by = run_tests(where, tests)
            shutil.copy(ROOT / fault.path, where / fault.path)
            print(f"  {outcome} in {time.monotonic() - began:.0f} s by {len(tests)} files  {by}", flush=True)
            if outcome != "caught":
                survived.append((outcome, fault))
    if typed.get("list") != "true":
        print(f"\n{len(drawn) - len(survived)} of {len(drawn)} caught")
        print(*(f"{outcome}: {fault.path}:{fault.line} {fault.kind}" for outcome, fault in survived), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
