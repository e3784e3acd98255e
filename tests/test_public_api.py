"""Names, files and documentation of what the package exports."""

import doctest
import importlib
import inspect
import pathlib

import keras
import numpy as np
import pytest
from cases import LAYERS, PUBLIC, STRATEGIES, WITHOUT_ID

import mtlkeras
from mtlkeras import strategies

PACKAGE = pathlib.Path(mtlkeras.__file__).parent
OBJECTS = [(folder, name) for folder, names in PUBLIC.items() for name in names]
WITH_REGISTRY = ["aggregators", "balancers", "strategies"]


def public_object(folder, name):
    if folder == "tuner":
        pytest.importorskip("keras_tuner", reason="needs the extra `tuner`")
    return getattr(importlib.import_module(f"mtlkeras.{folder}"), name)


def test_every_folder_exports_what_the_cases_list():
    exported = {}
    for file in PACKAGE.glob("*/__init__.py"):
        module = importlib.import_module(f"mtlkeras.{file.parent.name}")
        if hasattr(module, "__all__"):
            exported[file.parent.name] = sorted(module.__all__)
    assert exported == {name: sorted(names) for name, names in PUBLIC.items()}


def test_the_package_exports_the_public_folders():
    names = set(mtlkeras.__all__)
    assert {"MultiTaskModel", "__version__"} <= names
    folders = names - {"MultiTaskModel", "__version__"}
    assert folders == set(PUBLIC) - {"models"}
    for name in names:
        assert hasattr(mtlkeras, name)


def test_an_object_lives_in_the_file_of_its_name():
    for folder, name in OBJECTS:
        if name in WITHOUT_ID:
            continue
        module = public_object(folder, name).__module__
        package, _, file = module.rpartition(".")
        assert package == f"mtlkeras.{folder}"
        assert file == file.lower()
        assert file.replace("_", "") == name.lower().replace("_", "")


@pytest.mark.parametrize("folder", WITH_REGISTRY)
def test_ids_are_the_names_of_the_files(folder):
    module = importlib.import_module(f"mtlkeras.{folder}")
    files = {
        public_object(folder, name).__module__.rpartition(".")[2]
        for name in set(PUBLIC[folder]) - WITHOUT_ID
    }
    assert module.ids() == sorted(files)


def test_every_strategy_has_a_case():
    tested = {type(case.strategy()).__name__ for case in STRATEGIES}
    assert tested == set(PUBLIC["strategies"]) - WITHOUT_ID
    ids = [case.id for case in STRATEGIES]
    assert len(set(ids)) == len(ids)
    for case in STRATEGIES:
        assert case.id.startswith(
            next(
                name
                for name in sorted(strategies.ids(), key=len, reverse=True)
                if case.id.startswith(name)
            )
        )


def test_every_layer_has_a_case():
    tested = {case.cls.__name__ for case in LAYERS}
    # They run for one task at a time: tests/layers/test_roaming.py.
    tested |= {"RoamingMask", "TaskBatchNormalization"}
    assert tested == set(PUBLIC["layers"])
    ids = [case.id for case in LAYERS]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("folder", PUBLIC)
def test_documented(folder):
    for name in PUBLIC[folder]:
        check_documentation(folder, name)


def check_documentation(folder, name):
    found = public_object(folder, name)
    documentation = inspect.getdoc(found)
    assert documentation
    summary = documentation.splitlines()[0]
    assert summary.endswith("."), summary
    if name in ("get", "ids") or not inspect.isclass(found):
        return
    if "__init__" in vars(found):
        parameters = [
            parameter.name
            for parameter in inspect.signature(found).parameters.values()
            if parameter.kind == parameter.POSITIONAL_OR_KEYWORD
        ]
        if parameters:
            assert "\nArgs:\n" in documentation
        for parameter in parameters:
            assert f"    {parameter}: " in documentation, parameter
    # A base class is shown by its subclasses.
    if name not in WITHOUT_ID:
        assert "\nExample:\n" in documentation, name
        assert ">>> " in documentation


@pytest.mark.parametrize("folder", PUBLIC)
def test_examples_run(folder):
    for name in PUBLIC[folder]:
        found = public_object(folder, name)
        module = inspect.getmodule(found)
        names = {"keras": keras, "np": np, "mtlkeras": mtlkeras}
        names.update(vars(module))
        finder = doctest.DocTestFinder(recurse=True, exclude_empty=True)
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
        for test in finder.find(found, name, module=module, globs=names):
            output = []
            runner.run(test, out=output.append)
            assert not runner.failures, "".join(output)
