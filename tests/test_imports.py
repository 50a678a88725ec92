"""One direction: the import statements of every file, read with `ast`, against the table of who may import whom."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import bdjax
from bdjax import attacks

ROOT = Path(bdjax.__file__).parent
BASE = {"checks", "pytree", "types", "tasks", "registry", "files", "structure"}

# data → poison → train → defend → evaluate → report. Each row names what it holds, and which rows it may import beside
# those above it that are in BASE.
MAY_IMPORT = {
    ("__init__", "checks", "pytree"): set(),
    ("registry", "files"): {"checks"},
    ("types", "tasks"): {"pytree", "checks"},
    ("structure",): {"checks", "pytree", "types"},
    ("devices",): BASE,
    ("optim",): BASE,
    ("data",): BASE | {"devices"},
    ("models",): BASE | {"data"},  # what images are, to try a recognized network with
    ("parametrizations",): BASE | {"optim"},
    # data: uint8 to float; models: the layers of generators; a trigger may be made with a network
    ("attacks",): BASE | {"data", "models", "optim"},
    ("curvature",): BASE | {"data", "devices"},
    ("poison",): BASE | {"data"},  # an attack is whatever fits the protocol
    ("evaluate", "stealth"): BASE | {"data", "devices"},
    ("train",): BASE | {"curvature", "data", "devices", "optim", "parametrizations", "poison"},
    # a defender knows neither attacks nor poison
    ("defenses",): BASE | {"curvature", "data", "optim", "parametrizations", "train"},
    ("sweeps",): BASE | {"defenses", "train"},
    ("runs",): BASE
    | {
        "attacks",
        "curvature",
        "data",
        "defenses",
        "devices",
        "evaluate",
        "models",
        "optim",
        "poison",
        "stealth",
    }
    | {"sweeps", "train"},
    ("report",): {"checks", "files", "runs", "tasks"},
    ("bench",): BASE
    | {"attacks", "data", "defenses", "devices", "models", "optim", "poison", "runs", "train"},
    ("saved", "exported"): BASE
    | {"curvature", "defenses", "devices", "evaluate", "report", "runs"},
    ("analysis",): BASE
    | {
        "curvature",
        "data",
        "devices",
        "evaluate",
        "optim",
        "parametrizations",
        "report",
        "runs",
        "saved",
        "train",
    },
    ("cli", "__main__"): BASE
    | {"analysis", "bench", "curvature", "data", "devices", "exported", "report", "runs", "saved"}
    | {"train"},
}
ROWS = {name: row for row in MAY_IMPORT for name in row}

# Who alone may import a library, so that it can be optional, lazy or exchanged.
ONLY = {
    "tensorflow_datasets": "data/sources/",
    "array_record": "data/sources/",
    "grain": "data/streams.py",
    "matplotlib": ("analysis/", "report/", "runs/subject.py"),  # the last for a type
    "openTSNE": "analysis/features.py",
    "umap": "analysis/features.py",
    "flax.linen": ("models/", "attacks/_generators.py"),
    "orbax": "train/",
    "rich": ("report/grid.py", "cli/_progress.py", "cli/guide.py", "cli/_markdown.py"),
    "yaml": "runs/schema.py",
    "submitit": "runs/launch.py",
}

FILES = sorted(ROOT.rglob("*.py"))


def relative(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def role(file: Path) -> str:
    """Return the top-level module or package that a file belongs to."""
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


def dotted(file: Path) -> str:
    return "bdjax." + relative(file).removesuffix(".py").replace("/", ".").removesuffix(".__init__")


def module_of(name: str, known: Mapping[str, Path]) -> str:
    """Return the module that an imported name is, or is of."""
    return name if name in known else name.rpartition(".")[0]


def imported(file: Path) -> Iterator[str]:
    """Yield the dotted names that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{relative(file)} line {node.lineno}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_roles(file: Path) -> set[str]:
    names = {name.split(".")[1] for name in imported(file) if name.startswith("bdjax.")}
    return {name for name in names if (ROOT / name).is_dir() or (ROOT / f"{name}.py").is_file()}


@pytest.mark.parametrize("file", FILES, ids=relative)
def test_imports_follow_the_table(file):
    assert role(file) in ROWS, f"say in the table what {role(file)} may import"
    row = ROWS[role(file)]
    assert imported_roles(file) <= MAY_IMPORT[row] | set(row)


def test_the_table_has_a_row_for_each_module_and_no_arrow_upward():
    assert set(ROWS) == set(map(role, FILES))
    assert len(MAY_IMPORT) <= 22
    above: set[str] = set()
    for row, allowed in MAY_IMPORT.items():
        assert allowed & set(ROWS) <= above | (BASE - set(row)), (
            f"{row} imports what stands below it"
        )
        above |= set(row)


def test_no_modules_import_each_other_in_a_circle():
    names = {dotted(file): file for file in FILES}
    needs = {
        name: {module_of(found, names) for found in imported(file)} & names.keys()
        for name, file in names.items()
    }
    done: set[str] = set()
    while ready := {name for name, needed in needs.items() if needed - {name} <= done} - done:
        done |= ready
    assert done == names.keys(), "these import each other"


@pytest.mark.parametrize("library", ONLY)
def test_a_library_is_imported_where_it_belongs_and_nowhere_else(library):
    prefix = library + "."
    importers = [
        relative(file)
        for file in FILES
        if any(f"{name}.".startswith(prefix) for name in imported(file))
    ]
    assert importers, f"nothing imports {library}: take it out of the table"
    assert [file for file in importers if not file.startswith(ONLY[library])] == []


def modules_after(names: list[str]) -> set[str]:
    """Return the top-level modules that a fresh interpreter has after importing these."""
    code = f"import sys, {', '.join(names)}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        ).stdout.split()
    )


def test_importing_everything_imports_no_optional_library():
    # Of data/sources: only where they are used
    lazy = ("_tfds.py", "_cifar_builder.py", "_image_folder.py", "_images.py", "_encoded.py")
    lazy += ("_class_folder.py", "gtsrb.py", "imagenet.py", "tiny_imagenet.py")
    files = [file for file in FILES if file.name not in lazy]
    names = [dotted(file) for file in files]
    loaded = modules_after(["bdjax", *(name for name in names if name != "bdjax.__init__")])
    assert {"bdjax", "jax"} <= loaded
    optional = {
        "tensorflow_datasets",
        "tensorflow",
        "array_record",
        "grain",
        "matplotlib",
        "PIL",
        "sklearn",
        "torch",
    } | {"openTSNE", "umap"}
    assert not loaded & optional


@pytest.mark.parametrize("file", FILES, ids=relative)
def test_text_in_files_is_utf8_whatever_the_system_says(file):
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if name not in ("open", "fdopen", "read_text", "write_text", "NamedTemporaryFile"):
            continue
        words = [*node.args, *(keyword.value for keyword in node.keywords)]
        said = {
            word.value
            for word in words
            if isinstance(word, ast.Constant) and isinstance(word.value, str)
        }
        binary = any("b" in word and len(word) <= 3 for word in said) or said & {"r:"}
        whole = ast.unparse(node.func)
        if whole in ("os.open", "Image.open", "gzip.open", "atomic.write_text", "write_text"):
            continue  # no text, or ours, which are UTF-8
        assert binary or "utf-8" in said or whole.startswith("_open"), (
            f"{relative(file)} line {node.lineno}: {whole}"
        )


def test_reports_and_the_command_line_start_without_jax():
    reports = [dotted(file) for file in FILES if role(file) in ("report", "files")]
    names = ["checks", "tasks.metrics", "cli", "devices.guard", "registry", "runs.folder"]
    assert "jax" not in modules_after([*reports, *(f"bdjax.{name}" for name in names)])


@pytest.mark.parametrize("file", FILES, ids=relative)
def test_everything_public_is_documented(file):
    module = ast.parse(file.read_text())
    assert ast.get_docstring(module), "the module has no docstring"
    public = [
        node
        for node in module.body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name[0] != "_"
    ]
    assert [node.name for node in public if not ast.get_docstring(node)] == []


def test_the_package_imports_its_public_modules_when_they_are_asked_for():
    assert "jax" not in modules_after(["bdjax"])
    code = "import bdjax; print(bdjax.attacks.names()[0], set(bdjax.__all__) <= set(dir(bdjax)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == [attacks.names()[0], "True"]


@pytest.mark.parametrize("name", bdjax.__all__)
def test_every_public_name_is_a_module(name):
    assert getattr(bdjax, name) is importlib.import_module(f"bdjax.{name}")


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'atacks'"):
        bdjax.atacks  # noqa: B018
