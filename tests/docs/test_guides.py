"""The pages of docs/guides: their code runs, their links lead somewhere."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from code_blocks import promised_output, python_blocks, run_block
from prediction_server import has_protos, start_server

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "guides"
PAGES = {file.stem: file.read_text() for file in sorted(FOLDER.glob("*.md"))}
# TensorFlow 2.21 may crash on a busy machine when it takes down the iterator of
# a distributed data set. This must not take other tests with it.
IN_A_PROCESS = ("distribution",)
OPTIONAL = ("onnxruntime", "tf2onnx", "ai_edge_litert")


def can_run(block):
    """Whether the packages that a block needs are installed."""
    names = [name for name in OPTIONAL if name in block]
    if "tuner" in block:
        names.append("keras_tuner")
    if 'format="onnx"' in block:
        names += ["onnx", "tf2onnx"]
    if "tensorflow_serving" in block and not has_protos():
        return False
    return all(importlib.util.find_spec(name) for name in names)


@pytest.mark.parametrize("name", set(PAGES) & set(IN_A_PROCESS))
def test_blocks_run_in_a_process(name, tmp_path):
    code = "\n".join(python_blocks(PAGES[name]))
    assert not promised_output(code)
    root = str(FOLDER.parents[1])
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": root},
            capture_output=True,
            text=True,
        )
        if done.returncode != -signal.SIGSEGV:
            break
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.filterwarnings("ignore:In the future `np.object`:FutureWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:keras_tuner")
@pytest.mark.parametrize("name", sorted(set(PAGES) - set(IN_A_PROCESS)))
def test_blocks_run(name, tmp_path, monkeypatch):
    """Blocks share their names, as a reader types them one after another."""
    monkeypatch.chdir(tmp_path)
    blocks = python_blocks(PAGES[name])
    namespace = {"__name__": name}
    skipped = 0
    for number, block in enumerate(blocks, 1):
        if not can_run(block):
            skipped += 1
            continue
        server = None
        if "localhost:8500" in block:
            folder = tmp_path / "serving" / "digits"
            server, address = start_server(folder, "digits")
            block = block.replace("localhost:8500", address)
        where = f"{name}.md, block {number}"
        printed = run_block(block, where, namespace).splitlines()
        promised = promised_output(block)
        assert [line for line in printed if line in promised] == promised
        if server is not None:
            server.stop(grace=None).wait()
    if skipped:
        pytest.skip(f"{skipped} of {len(blocks)} blocks need other packages")


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    prose = re.sub(r"^```.*?^```$", "", PAGES[name], flags=re.M | re.S)
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", prose):
        assert (FOLDER / link).exists(), link
