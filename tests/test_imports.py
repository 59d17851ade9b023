"""Import rules of the packages, and the cost of importing `zoo`."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import zoo

PACKAGE = Path(zoo.__file__).parent
BACKENDS = {"tensorflow", "torch", "jax", "jaxlib"}


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def imported_packages(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return {name.split(".")[0] for name in names}


def test_zoo_imports_backends_in_one_folder_only() -> None:
    files = [path for path in PACKAGE.rglob("*.py") if "backends" not in path.parts]
    assert len(files) > 10
    for path in files:
        assert not imported_packages(path) & BACKENDS, path
    for name in zoo.backends.NAMES:  # `imported_packages` must find an import that exists
        assert name in imported_packages(PACKAGE / "backends" / f"{name}.py")


# The rooms of `zoo/`, from the foundation up, and the rooms that each may import.
ROOMS: dict[str, set[str]] = {
    "_version": set(),
    "validation": set(),
    "registry": {"validation"},
    "summary": {"validation"},
    "backends": set(),
    "lessons": {"validation"},
    "progress": set(),
    "random": {"validation"},
    "files": {"random", "registry", "validation"},
    "initializers": {"random", "validation"},
    "layers": {"backends", "initializers", "random", "validation"},
    "models": {"initializers", "layers", "random", "registry", "validation"},
    "training": {"backends", "files", "progress", "random", "validation"},
    "datasets": {"backends", "files", "progress", "random", "validation"},
    "generation": {
        "backends", "datasets", "files", "layers", "progress", "random", "validation",
    },
    "evaluation": {
        "backends", "datasets", "generation", "layers", "lessons", "training", "validation",
    },
    "diffusion": {
        "backends", "datasets", "evaluation", "files", "models", "progress", "random",
        "registry", "training", "validation",
    },
    "interop": {
        "backends", "files", "generation", "initializers", "layers", "models", "random", "training",
        "validation",
    },
    "cli": {"backends", "training"},
    "parity": {
        "backends", "cli", "datasets", "diffusion", "evaluation", "files", "generation", "random",
        "registry", "training", "validation",
    },
    "tasks": {
        "cli", "datasets", "diffusion", "files", "generation", "registry", "training", "validation",
    },
    "export": {
        "_version", "backends", "cli", "datasets", "diffusion", "evaluation", "files", "generation",
        "layers", "parity", "random", "registry", "tasks", "training", "validation",
    },
    "pretrained": {"files", "registry", "tasks", "validation"},
    "__init__": {"_version", "backends", "datasets", "models", "pretrained", "training"},
    "__main__": {"cli", "export", "parity", "registry", "summary", "tasks"},
}  # fmt: skip


def imported_rooms(path: Path) -> set[str]:
    """Rooms that a file of `zoo/` imports, apart from its own."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            first, *rest = node.module.split(".")
            if first == "zoo":
                names = rest[:1] or [alias.name for alias in node.names]
                rooms |= {name if name in ROOMS else "__init__" for name in names}
    return rooms - {room_of(path)}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_rooms_import_only_what_the_table_allows() -> None:
    imports: dict[str, set[str]] = {room: set() for room in ROOMS}
    for path in PACKAGE.rglob("*.py"):
        assert imported_rooms(path) <= ROOMS[room_of(path)], path
        imports[room_of(path)] |= imported_rooms(path)
    assert imports == ROOMS  # no permission that nobody uses


def test_rooms_import_only_rooms_below_them() -> None:
    """So there is no circle."""
    below: set[str] = set()
    for room, allowed in ROOMS.items():
        assert allowed <= below, room
        below.add(room)


def test_models_import_no_sampler() -> None:
    assert not ROOMS["models"] & {"generation", "diffusion"}


def test_files_are_short_and_the_top_is_small() -> None:
    modules = list(PACKAGE.glob("*.py"))
    assert len(modules) <= 12
    for path in PACKAGE.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, path


def test_zoo_imports_no_recipes_and_recipes_no_backends() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert not imported_packages(path) & {"recipes", "tests", "benchmarks"}, path
    for path in (PACKAGE.parent / "recipes").glob("*.py"):
        assert not imported_packages(path) & BACKENDS, path


def import_cost() -> tuple[float, set[str]]:
    """CPU seconds and new packages of `import zoo` in a process that has imported Keras."""
    result = run_python(
        "import keras, json, sys, time; loaded = list(sys.modules); start = time.process_time(); "
        "import zoo; seconds = time.process_time() - start; "
        "print(json.dumps([seconds, loaded, list(sys.modules)]))"
    )
    seconds, *modules = json.loads(result.stdout.splitlines()[-1])
    keras_packages, all_packages = ({name.split(".")[0] for name in names} for names in modules)
    return seconds, all_packages - keras_packages


def test_import_zoo_loads_only_keras() -> None:
    """`import zoo` loads no second backend and nothing that plots, reports or downloads."""
    _, added = import_cost()
    assert "zoo" in added
    assert added <= {"zoo", "zoo_command", "PIL", "ctypes", "_ctypes", "statistics", "_statistics"}


def registered_classes() -> set[str]:
    """Names under which Keras looks up the classes that `zoo` registers."""
    names = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
                if "keras.saving.register_keras_serializable('zoo')" in decorators:
                    names.add(f"zoo>{node.name}")
    return names


def test_import_zoo_registers_every_class_that_files_name() -> None:
    code = "import zoo, keras; print(*keras.saving.get_custom_objects())"
    assert {"zoo>Adam", "zoo>ImageAugmentation"} <= registered_classes()
    assert registered_classes() <= set(run_python(code).stdout.split())


def test_import_zoo_takes_at_most_200_ms() -> None:
    """One of three attempts must be fast enough, since other processes may use the CPU."""
    assert any(import_cost()[0] < 0.2 for _ in range(3))


def test_zoo_exports_callables() -> None:
    for name in zoo.__all__:
        assert callable(getattr(zoo, name))
    assert zoo.__version__
