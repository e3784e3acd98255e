"""Lets autodoc read docstrings that are Markdown, on classes of Keras.

autodoc passes docstrings on to docutils, which reads reStructuredText. Sections
such as `Args:` are the business of `sphinx.ext.napoleon`; this translates what
else our docstrings use: fenced blocks, tables, code spans, links, and the
heading `Example:` above code that is not indented.
"""

import inspect
import re

FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
TABLE = re.compile(r"(?:^ *\|.*\|\n?)+", re.MULTILINE)
HEADING = re.compile(r"^( *)Examples?:$(?=\n\n\1>>> )", re.MULTILINE)
LINK = re.compile(r"\[([^\]]+)\]\(\s*(https?://[^)\s]+)\s*\)")
CODE = re.compile(r"(?<!`)`([^`]+)`(?!`)")


def to_rst(text):
    """The docstring `text` in reStructuredText."""
    parts, end = [], 0
    for fence in FENCE.finditer(text):
        indent, language, body = fence.groups()
        parts.append(prose_to_rst(text[end : fence.start()]))
        parts.append(f"{indent}.. code-block:: {language or 'text'}\n\n")
        parts.append(re.sub(r"^(?=.)", "    ", body, flags=re.MULTILINE))
        end = fence.end()
    return "".join([*parts, prose_to_rst(text[end:])])


def prose_to_rst(text):
    text = HEADING.sub(r"\1.. rubric:: Example", text)
    text = TABLE.sub(lambda match: table_to_rst(match[0]), text)
    text = CODE.sub(lambda match: f"``{one_line(match[1])}``", text)
    return LINK.sub(lambda m: f"`{one_line(m[1])} <{m[2]}>`__", text)


def table_to_rst(text):
    lines = text.rstrip("\n").split("\n")
    indent = re.match(" *", lines[0])[0]
    found = [f"{indent}.. list-table::", f"{indent}   :header-rows: 1", ""]
    # The second line is the one of dashes.
    for line in [lines[0], *lines[2:]]:
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        for position, cell in enumerate(cells):
            mark = "*" if position == 0 else " "
            found.append(f"{indent}   {mark} - {cell}")
    return "\n".join(found) + "\n"


def one_line(text):
    return " ".join(text.split())


def process_docstring(app, what, name, found, options, lines):
    lines[:] = to_rst("\n".join(lines)).split("\n")


def process_signature(app, what, name, found, options, signature, returns):
    """Signatures of `__init__`, which `__new__` of Keras classes hides."""
    if what != "class" or "__init__" not in vars(found):
        return None
    parameters = list(inspect.signature(found.__init__).parameters.values())
    return str(inspect.Signature(parameters[1:])), None


def skip_member(app, what, name, found, skip, options):
    """Leaves out what classes inherit from other libraries."""
    function = getattr(found, "fget", found)
    module = getattr(function, "__module__", None) or "mtlkeras"
    return None if module.partition(".")[0] == "mtlkeras" else True


def setup(app):
    app.setup_extension("sphinx.ext.autodoc")
    # Before napoleon, which has priority 500.
    app.connect("autodoc-process-docstring", process_docstring, priority=400)
    app.connect("autodoc-process-signature", process_signature)
    app.connect("autodoc-skip-member", skip_member)
    return {"parallel_read_safe": True}
