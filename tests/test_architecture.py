"""Imports run downwards, folder by folder; and nothing happens at import."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "mnist_accel"
# From the top down: a file imports from lower layers only, or from its own folder.
LAYERS = (
    ("__main__", "notebook"),
    ("commands",),
    ("console", "pages"),
    ("inference",),
    ("runs",),
    ("profiling",),
    ("training",),
    ("machine", "data", "cli"),
    ("models",),
    ("recipe", "errors", "files", "seeding", "phase", "blame", "student"),
)
FLOOR_OF = {name: floor for floor, names in enumerate(reversed(LAYERS)) for name in names}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


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


def packages(path: Path) -> set[str]:
    """What it imports from anybody."""
    return {name.split(".")[0] for name in imports(path)}


def rooms(path: Path) -> set[str]:
    """What it imports from us: folders and files of the package."""
    return {name.split(".")[1] for name in imports(path) if name.startswith("mnist_accel.")} & FLOOR_OF.keys()


def importers_of(package: str) -> set[str]:
    """Files of the project, tests aside, that import it anywhere."""
    files = [*MODULES, ROOT / "launch.py", *(ROOT / "recipes").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
    return {path.relative_to(ROOT).as_posix() for path in files if package in packages(path)}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_run_downwards(path: Path) -> None:
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    assert own in FLOOR_OF, f"{own} has no layer yet: give it one here"
    for other in rooms(path) - {own}:
        assert FLOOR_OF[other] < FLOOR_OF[own], f"{path.name} imports {other}, which is not below it"


def test_training_knows_no_files_and_no_recipe() -> None:
    for path in (PACKAGE / "training").glob("*.py"):
        assert not rooms(path) & {"files", "recipe", "cli"}
        assert not packages(path) & {"rich", "pathlib", "json", "safetensors", "os"}


def test_data_and_networks_know_no_recipe_and_networks_only_torch() -> None:
    assert not any("recipe" in rooms(path) for path in (PACKAGE / "data").glob("*.py"))
    for path in (PACKAGE / "models").glob("[!_]*.py"):
        assert rooms(path) <= {"models"} and packages(path) <= {"mnist_accel", "torch", "collections", "typing"}


def test_one_folder_imports_rich() -> None:
    assert {Path(name).parent.as_posix() for name in importers_of("rich")} == {"mnist_accel/console"}


def test_in_the_program_only_launch_and_the_commands_load_recipes_and_only_commands_measure() -> None:
    loading, measuring = (
        {name for name in importers_of(package) if not name.startswith(("benchmarks/", "recipes/"))}
        for package in ("recipes", "benchmarks")
    )
    assert "launch.py" in loading
    assert all(name.startswith("mnist_accel/commands/") for name in loading - {"launch.py"} | measuring)


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
