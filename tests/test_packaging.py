import configparser
import os
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built without network access, from a copy of the tree.

    A copy, since setuptools leaves `build/` behind and packs what lies there.
    """
    source = tmp_path_factory.mktemp("source")
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("mtlkeras", "tests", "examples"):
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    target = tmp_path_factory.mktemp("wheel")
    pip(
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        f"--wheel-dir={target}",
        str(source),
    )
    (found,) = target.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder with nothing but what the wheel installs."""
    target = tmp_path_factory.mktemp("installed")
    pip("install", "--no-deps", f"--target={target}", str(wheel))
    return target


def pip(*arguments):
    subprocess.run(
        [sys.executable, "-m", "pip", "--no-input", "--quiet", *arguments],
        env={
            **os.environ,
            "PIP_NO_INDEX": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        },
        check=True,
    )


def run(code, cwd, path=None):
    """Runs Python code in a new process outside the checkout."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
    environment["PYTHONPATH"] = str(path or ROOT)
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
    )


def read_metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


def test_wheel_contains_the_library_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        files = {n for n in archive.namelist() if ".dist-info/" not in n}
    expected = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "mtlkeras").rglob("*.py")
    }
    assert files == expected


def test_wheel_metadata(wheel):
    version = {}
    exec((ROOT / "mtlkeras" / "version.py").read_text(), version)
    metadata = read_metadata(wheel)
    assert metadata["Name"] == "mtlkeras"
    assert metadata["Version"] == version["__version__"]
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-File"] == "LICENSE"


def test_wheel_leaves_the_choice_of_tensorflow_to_the_user(wheel):
    metadata = read_metadata(wheel)
    required = [
        line
        for line in metadata.get_all("Requires-Dist")
        if "extra ==" not in line
    ]
    assert not any("tensorflow" in line for line in required)
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = set(config["options.extras_require"])
    assert set(metadata.get_all("Provides-Extra")) == extras
    assert extras >= {
        "tensorflow",
        "tensorflow-cpu",
        "gpu",
        "clustering",
        "datasets",
        "tuner",
        "plot",
        "docs",
        "test",
    }


def test_wheel_runs_the_quickstart_outside_the_checkout(installed, tmp_path):
    shutil.copy(ROOT / "examples" / "quickstart.py", tmp_path)
    code = """
import runpy
import sys

sys.argv = ["quickstart.py", "--epochs", "1", "--output", "results"]
runpy.run_path("quickstart.py", run_name="__main__")
print(sys.modules["mtlkeras"].__file__)
"""
    result = run(code, tmp_path, path=installed)
    assert result.returncode == 0, result.stderr
    # Keras only warns where it cannot restore an optimizer, for one.
    assert "UserWarning" not in result.stderr
    imported = Path(result.stdout.splitlines()[-1])
    assert imported == installed / "mtlkeras" / "__init__.py"
    # sizes, as an empty file would satisfy mere existence
    for name in ("quickstart.png", "quickstart.keras"):
        assert (tmp_path / "results" / name).stat().st_size > 10_000


@pytest.mark.parametrize("package", ["tensorflow", "keras"])
def test_import_without_tensorflow_says_what_to_install(package, tmp_path):
    code = f"""
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {package!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
import mtlkeras
"""
    result = run(code, tmp_path)
    assert result.returncode != 0
    last = result.stderr.splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert f"package `{package}` is not installed" in last
    assert 'pip install "mtlkeras[tensorflow]"' in last


def test_unsupported_backend_says_what_is_supported(tmp_path):
    code = """
import os
os.environ["KERAS_BACKEND"] = "jax"
import mtlkeras
"""
    result = run(code, tmp_path)
    assert result.returncode != 0
    last = result.stderr.splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert "KERAS_BACKEND=tensorflow" in last
