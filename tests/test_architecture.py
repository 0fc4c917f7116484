"""The layers of DESIGN, read from the imports; and nothing happens at import."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "mnist_accel"
# From the bottom up: a module imports from lower layers only, or from its own package. A new module gets a place here.
LAYERS = (
    {"mnist_accel", "errors", "seeding", "recipe", "dropout", "phase", "blame", "again", "launcher"},
    {"job"},
    {"models", "data", "objective", "optim", "runtime", "interrupt", "cli", "syncbn"},
    {"checkpoint", "machine", "exchange", "trial"},
    {"results"},
    {"stepping"},
    {"engine", "device_step", "claims"},
    {"resume", "profiling"},
    {"outcome"},
    {"fit"},
    {"run"},
    {"report"},
    {"report_profile"},
    {"commands"},
    {"__main__"},
)
LAYER_OF = {name: layer for layer, names in enumerate(LAYERS) for name in names}
MODULES = sorted(PACKAGE.rglob("*.py"))


def unit(path: Path) -> str:
    """What a file belongs to: ``mnist_accel/data/cache.py`` to ``data``, ``mnist_accel/cli.py`` to ``cli``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return "mnist_accel" if parts == ("__init__",) else parts[0]


def imports(path: Path, at_import_only: bool = False) -> Iterator[str]:
    """Dotted names, as specific as the statement: also ``from a import b`` is ``a.b``."""
    tree = ast.parse(path.read_text())
    nodes: Iterator[ast.AST] = iter(tree.body) if at_import_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written in full"
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def units_imported(path: Path) -> set[str]:
    found = set()
    for name in imports(path):
        first, *rest = name.split(".")
        if first == "mnist_accel":
            found.add(rest[0] if rest and rest[0] in LAYER_OF else "mnist_accel")
    return found


def importers_of(top_level: str) -> set[str]:
    """Files of the project, tests aside, that import a package by this name anywhere."""
    files = [*MODULES, ROOT / "launch.py", *(ROOT / "recipes").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
    return {
        path.relative_to(ROOT).as_posix()
        for path in files
        if any(name.split(".")[0] == top_level for name in imports(path))
    }


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_run_downwards(path: Path) -> None:
    own = unit(path)
    assert own in LAYER_OF, f"{own} has no layer yet: give it one here, as DESIGN says"
    for other in units_imported(path) - {own}:
        assert LAYER_OF[other] < LAYER_OF[own], f"{path.name} imports {other}, which is not below it"


def test_the_engine_knows_no_console_no_files_and_no_profiler() -> None:
    known = units_imported(PACKAGE / "engine.py")
    assert not known & {"report", "cli", "run", "claims", "runtime", "profiling", "checkpoint", "recipe"}
    assert not {"rich", "pathlib", "json", "safetensors", "os"} & {
        name.split(".")[0] for name in imports(PACKAGE / "engine.py")
    }


def test_networks_know_nothing_of_training() -> None:
    for path in (PACKAGE / "models").glob("[!_]*.py"):
        assert units_imported(path) <= {"models", "dropout"}
        assert {name.split(".")[0] for name in imports(path)} <= {"mnist_accel", "torch", "collections"}


def test_data_knows_nothing_of_training() -> None:
    for path in (PACKAGE / "data").rglob("*.py"):
        assert units_imported(path) <= {"data", "errors", "files", "seeding", "phase"}


def test_builders_take_flat_arguments_and_so_never_see_a_recipe() -> None:
    who = {unit(path) for path in MODULES if "recipe" in units_imported(path)}
    assert who <= {"cli", "claims", "checkpoint", "resume", "outcome", "trial", "fit", "run", "report", "commands"}


def test_one_file_imports_rich() -> None:
    assert importers_of("rich") == {"mnist_accel/report.py"}


def test_in_the_program_only_launch_and_the_commands_load_recipes() -> None:
    who = {name for name in importers_of("recipes") if name == "launch.py" or name.startswith("mnist_accel/")}
    assert "launch.py" in who
    assert all(name == "launch.py" or name.startswith("mnist_accel/commands/") for name in who)


def test_the_stock_scripts_are_for_measuring_only() -> None:
    who = {name for name in importers_of("benchmarks") if not name.startswith("benchmarks/")}
    assert all(name.startswith("mnist_accel/commands/") for name in who)


def test_torchvision_is_imported_in_one_place_and_late() -> None:
    at_import = {
        path.name
        for path in MODULES
        if any(name.split(".")[0] == "torchvision" for name in imports(path, at_import_only=True))
    }
    assert at_import == set()


def test_nothing_is_done_for_one_recipe_by_its_name() -> None:
    for path in [*MODULES, ROOT / "launch.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare):
                sides = [ast.unparse(side) for side in (node.left, *node.comparators)]
                compared = any(side.endswith(("recipe.name", "recipe.model")) for side in sides)
                assert not compared, f"{path.name}:{node.lineno}"


# Nothing happens at import


def in_a_fresh_process(code: str) -> str:
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_the_command_line_imports_nothing_heavy() -> None:
    code = "import sys, recipes, mnist_accel.cli, mnist_accel.console.report, mnist_accel.__main__\n"
    code += "[recipes.load(name) for name in recipes.names()]\n"
    code += "print(*{'torch', 'accelerate', 'torchvision', 'numpy', 'safetensors'} & set(sys.modules))"
    assert in_a_fresh_process(code) == "\n"


def test_importing_everything_does_nothing() -> None:
    """No random state moved, no file opened for writing, no process, no connection, no setting changed."""
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in [*MODULES, *(ROOT / "recipes").glob("*.py")]
    ]
    code = f"""
import importlib, logging, os, sys, warnings
sys.path.insert(0, {str(ROOT)!r})
sys.dont_write_bytecode = True
import accelerate, filelock, numpy, pydantic, rich.progress, rich.table, safetensors.torch, torch
import torch.distributed, torch.distributed.elastic.multiprocessing.errors
from accelerate.state import PartialState

def state():
    return (
        torch.get_rng_state().tolist(), torch.get_num_threads(), torch.is_grad_enabled(), dict(os.environ),
        torch.get_default_dtype(), torch.cuda.is_initialized(), list(logging.getLogger().handlers),
        list(warnings.filters), os.getcwd(), bool(PartialState._shared_state), numpy.random.get_state()[1].tolist(),
        sys.excepthook,
    )

seen = []
def watch(event, arguments):
    if event.startswith(("socket.", "subprocess.", "os.system", "os.fork", "os.mkdir", "os.remove", "os.rename")):
        seen.append((event, str(arguments)))
    if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        seen.append((event, str(arguments)))

before = state()
sys.addaudithook(watch)
for name in {modules!r}:
    importlib.import_module(name)
assert state() == before, [pair for pair in zip(before, state()) if pair[0] != pair[1]]
assert not seen, seen
print(len({modules!r}))
"""
    assert int(in_a_fresh_process(code)) > 25
