"""Python blocks of Markdown pages: found, run, and their output compared."""

import contextlib
import io
import re

# A call that says in a comment what it prints, on one line or on several.
PRINTS = re.compile(
    r"^print\((?:.*\)|\n(?:    .*\n)+\))  # (.+)$", re.MULTILINE
)


def python_blocks(text):
    return re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def run_block(block, name, namespace=None):
    """Runs a block and returns what it printed.

    Args:
        block: String, the code.
        name: String that an error message is to show.
        namespace: Dict to run it in. Defaults to `None`, a fresh one.
    """
    namespace = {"__name__": name} if namespace is None else namespace
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block, name, "exec"), namespace)
    return printed.getvalue()


def promised_output(block):
    """The lines that a block says it prints."""
    return PRINTS.findall(block)
