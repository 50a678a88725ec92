"""One direction: the import statements of every file, read with `ast`, against the table of who may import whom."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import bdjax

ROOT = Path(bdjax.__file__).parent
BASE = {"types", "pytree", "checks"}

# data → poison → train → defend → evaluate → report
MAY_IMPORT = {
    "__init__": set(),
    "types": {"pytree"},
    "pytree": set(),
    "checks": set(),
    "failures": {"checks"},
    "places": {"checks", "failures"},
    "similarity": set(),
    "stealth": BASE | {"data", "similarity"},
    "registry": {"checks"},
    "data": BASE | {"registry", "footprint"},
    "structure": BASE,
    "footprint": BASE,
    "adversarial": BASE,
    # data: uint8 to float; models: the layers of generators; a trigger may be made with a network
    "attacks": BASE | {"registry", "adversarial", "data", "models", "similarity", "structure"},
    "models": BASE | {"registry", "structure"},
    "optim": BASE,
    "chunks": set(),
    "fisher": {"chunks"},
    "hessian": BASE,
    "parametrizations": BASE | {"optim", "structure"},
    "poison": BASE | {"data"},  # uint8 to float; an attack is whatever fits the protocol
    "train": BASE | {"footprint", "failures", "adversarial", "data", "fisher", "optim", "parametrizations"},
    "attacker": BASE | {"data", "parametrizations", "poison", "train"},
    # a defender knows neither attacks nor poison
    "defenses": BASE | {"registry", "chunks", "data", "fisher", "optim", "parametrizations", "structure", "train"},
    "evaluate": BASE | {"data", "train"},  # data: uint8 to float; train: how bdjax compiles
    "strength": BASE | {"data", "defenses", "evaluate", "train"},
    "records": {"checks"},
    "analysis": BASE
    # a file that it writes, and nothing that it could change
    | {"chunks", "data", "evaluate", "fisher", "hessian", "layout", "optim", "parametrizations", "records", "structure"}
    | {"train"},
    "uncertainty": set(),
    "printable": set(),
    "soundness": set(),
    "differing_data": set(),
    "record_format": {"checks"},
    "report": {"checks", "printable", "differing_data", "record_format", "records", "soundness", "uncertainty"},
    "published": {"checks"},
    "tables": {"checks", "printable", "report", "soundness", "uncertainty"},
    "bundle": {"checks", "places", "records", "report"},
    "ranking": {"report", "tables", "uncertainty"},
    "paired": {"checks", "printable", "report", "soundness", "tables", "uncertainty"},
    "comparison": {"checks", "published", "report", "soundness", "tables", "uncertainty"},
    "layout": {"checks", "records"},
    "sensitivity": {"layout", "report", "tables", "uncertainty"},
    "figures": {"checks", "failures", "layout", "printable", "records", "report", "sensitivity", "tables"},
    "page": {"checks", "contact_sheet", "failures", "figures", "published", "records", "report", "sensitivity"}
    | {"places", "printable", "soundness", "tables", "uncertainty"},
    "progress": {"train"},
    "guard": set(),
    "schema": BASE | {"failures", "registry", "attacks", "defenses", "optim"},
    "config": BASE | {"data", "registry", "schema", "attacks", "poison", "models", "train", "defenses"},
    "plans": BASE | {"attacks", "config", "data", "footprint", "inputs", "poison", "attacker", "train", "defenses"},
    "inputs": BASE | {"config", "data"},
    "origins": set(),
    "profile": {"checks", "failures", "origins", "places", "records"},
    "provenance": {"checks", "config", "inputs", "plans", "records", "train"},
    "run": BASE
    | {"schema", "config", "plans", "poison", "attacker", "train", "defenses", "strength", "evaluate", "records"}
    | {"provenance"}
    | {"analysis", "soundness", "stealth"},
    "sweeps": BASE | {"defenses", "train"},
    "sweep_run": BASE
    | {"schema", "config", "plans", "attacker", "run", "sweeps", "train", "defenses", "records"}
    | {"inputs", "provenance"},
    "show": {"config", "plans", "poison", "run", "stealth"},
    "poisoned_folder": BASE | {"config", "data", "plans", "records", "run", "schema", "show", "train"},
    "contact_sheet": {"checks", "failures", "layout", "places", "show"},
    "launch": {"checks"},
    "saved": BASE
    | {"config", "plans", "provenance", "run", "defenses", "evaluate", "records", "report", "analysis"}
    | {"train"},  # how products round
    "findings": {"checks", "layout", "records", "registry", "report"},
    "analyze": {"checks", "analysis", "failures", "findings", "layout", "records", "registry", "report", "saved"}
    | {"places", "schema"},
    "demo": {"checks", "schema", "config", "run"},
    "bench": BASE
    # times what others do
    | {"attacks", "data", "defenses", "failures", "models", "optim", "places", "poison", "profile", "records", "train"},
    "__main__": {"cli"},
    "cli": BASE
    | {"registry", "schema", "config", "run", "demo", "train", "progress", "records", "report", "tables", "figures"}
    | {"page", "saved", "analysis", "bench", "sweep_run", "launch", "guard", "show", "contact_sheet"}
    | {"analyze", "bundle", "data", "failures", "findings", "layout", "paired", "plans", "poisoned_folder"}
    | {"places", "printable", "profile", "provenance", "ranking", "sensitivity"},
}

# Who alone may import a library, so that it can be optional, lazy or exchanged.
ONLY = {
    "tensorflow_datasets": "data/sources/",
    "array_record": "data/sources/",
    "grain": "data/streams.py",
    "matplotlib": ("analysis/", "contact_sheet.py", "figures.py", "findings.py", "layout.py", "sensitivity.py"),
    "openTSNE": "analysis/features.py",
    "umap": "analysis/features.py",
    "flax.linen": ("models/", "attacks/_generators.py"),
    "orbax": "train/",
    "rich": ("tables.py", "progress.py"),
    "yaml": "schema.py",
    "submitit": "launch.py",
}

FILES = sorted(ROOT.rglob("*.py"))


def relative(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def role(file: Path) -> str:
    """Return the top-level module or package that a file belongs to."""
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


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
    assert role(file) in MAY_IMPORT, f"say in the table what {role(file)} may import"
    assert imported_roles(file) <= MAY_IMPORT[role(file)] | {role(file)}


def test_the_table_has_a_row_for_each_module_and_no_circle():
    assert set(MAY_IMPORT) == set(map(role, FILES))
    done: set[str] = set()
    while ready := {name for name, allowed in MAY_IMPORT.items() if allowed <= done} - done:
        done |= ready
    assert done == set(MAY_IMPORT)


@pytest.mark.parametrize("library", ONLY)
def test_a_library_is_imported_where_it_belongs_and_nowhere_else(library):
    prefix = library + "."
    importers = [relative(file) for file in FILES if any(f"{name}.".startswith(prefix) for name in imported(file))]
    assert importers, f"nothing imports {library}: take it out of the table"
    assert [file for file in importers if not file.startswith(ONLY[library])] == []


def modules_after(names: list[str]) -> set[str]:
    """Return the top-level modules that a fresh interpreter has after importing these."""
    code = f"import sys, {', '.join(names)}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())


def test_importing_everything_imports_no_optional_library():
    lazy = (
        "_tfds.py",
        "_cifar_builder.py",
        "_image_folder.py",
        "_images.py",
    )  # of data/sources: only where they are used
    files = [file for file in FILES if file.name not in lazy]
    names = [
        "bdjax." + relative(file).removesuffix(".py").replace("/", ".").removesuffix(".__init__") for file in files
    ]
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
        said = {word.value for word in words if isinstance(word, ast.Constant) and isinstance(word.value, str)}
        binary = any("b" in word and len(word) <= 3 for word in said) or said & {"r:"}
        whole = ast.unparse(node.func)
        if whole in ("os.open", "Image.open", "gzip.open", "records.write_text", "files.write_text", "write_text"):
            continue  # no text, or ours, which are UTF-8
        assert binary or "utf-8" in said or whole.startswith("_open"), f"{relative(file)} line {node.lineno}: {whole}"


def test_reports_and_the_command_line_start_without_jax():
    names = ("bundle", "checks", "cli", "failures", "figures", "findings", "guard", "layout", "page", "paired")
    names += ("published", "ranking", "records", "registry", "report", "sensitivity", "tables", "uncertainty")
    assert "jax" not in modules_after([f"bdjax.{name}" for name in names])


@pytest.mark.parametrize("file", FILES, ids=relative)
def test_everything_public_is_documented(file):
    module = ast.parse(file.read_text())
    assert ast.get_docstring(module), "the module has no docstring"
    public = [node for node in module.body if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name[0] != "_"]
    assert [node.name for node in public if not ast.get_docstring(node)] == []
