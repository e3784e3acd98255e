"""The layers of the package, read from its imports without running them."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "mtlkeras"
FILES = sorted(PACKAGE.rglob("*.py"))

# What a folder may import beside itself: one way, down to `linalg`.
NOUNS = {"aggregators", "balancers", "layers", "losses", "metrics"}
NOUNS |= {"optimizers", "strategies"}
ALLOWED = {
    "models": NOUNS | {"backend"},
    **{noun: {"linalg", "registry", "stateful_layer"} for noun in NOUNS},
    # Weights are derivatives, which `keras.ops` does not have.
    "balancers": {"backend", "linalg", "registry", "stateful_layer"},
    "backend": set(),
    # It writes TensorBoard's events, and knows which worker writes files.
    "callbacks": NOUNS | {"backend"},
    "datasets": {"backend", "linalg"},
    "linalg": set(),
    "plot": set(),
    "registry": set(),
    "stateful_layer": set(),
    "tuner": NOUNS | {"callbacks"},
    "version": set(),
}

EXCEPTIONS = {
    ("mtlkeras/backend/tensorflow/selected_step.py", "layers"): (
        "a layer asks for the task that runs"
    ),
    ("mtlkeras/backend/tensorflow/sequential_step.py", "optimizers"): (
        "an optimizer of the user's own knows no slots"
    ),
    ("mtlkeras/backend/tensorflow/fused.py", "optimizers"): (
        "what a kernel cannot leave as it is has to be put back"
    ),
    ("mtlkeras/models/multi_task_model.py", "callbacks"): (
        "`fit` adds the callback that reports tasks"
    ),
    ("mtlkeras/backend/tensorflow/labels.py", "losses"): (
        "batch and losses agree on which entries are labelled"
    ),
}


def imported(file):
    """Full names of the modules and objects that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in {file}"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def place(file):
    """Folder or module right below `mtlkeras`; `None` for `__init__`."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return None if parts == ("__init__",) else parts[0]


def imported_places(file):
    names = [name.split(".") for name in imported(file)]
    return {name[1] for name in names if name[0] == "mtlkeras" and name[1:]}


def relative(file):
    return file.relative_to(ROOT).as_posix()


def test_there_are_files():
    assert len(FILES) > 20


def test_only_the_backend_imports_a_framework():
    frameworks = {"tensorflow", "jax", "torch"}
    importers = {
        place(file)
        for file in FILES
        if {name.split(".")[0] for name in imported(file)} & frameworks
    }
    assert importers == {"backend"}


def test_imports_point_one_way():
    wrong = set()
    for file in FILES:
        here = place(file)
        if here is None:
            continue  # `mtlkeras/__init__.py` puts everything together
        allowed = ALLOWED[here] | {here}
        wrong |= {
            (relative(file), found) for found in imported_places(file) - allowed
        }
    assert wrong == set(EXCEPTIONS)


def test_only_the_package_imports_the_models():
    importers = {
        relative(file)
        for file in FILES
        if "models" in imported_places(file) and place(file) != "models"
    }
    assert importers == {"mtlkeras/__init__.py"}


def test_no_file_mentions_folders_outside_of_the_project():
    # In pieces, or this file would be the first to be found.
    folder = b"sha" + b"red"
    forbidden = [b"../" + folder, b"/work/" + folder]
    skipped = {".git", ".venv", "build", "dist", "__pycache__"}
    skipped |= {".pytest_cache", ".ruff_cache"}
    found = []
    for file in ROOT.rglob("*"):
        parts = file.relative_to(ROOT).parts
        if skipped & set(parts) or not file.is_file():
            continue
        content = file.read_bytes()
        if any(path in content for path in forbidden):
            found.append(relative(file))
    assert found == []
