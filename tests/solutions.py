"""Solutions of the notebooks' exercises: nbval runs each after its exercise."""

import re

import nbformat

FENCE = re.compile(r"^```python\n(.*?)^```", re.M | re.S)
DETAILS = re.compile(r"<details>.*?</details>", re.S)


def solutions(book):
    """Return (exercise's cell, source) pairs: the first Python fence of the next <details>."""
    pairs, waiting = [], None
    for cell in book.cells:
        if "exercise" in cell.metadata.get("tags", ()):
            assert waiting is None, f"an exercise without a solution: {waiting and waiting.source}"
            waiting = cell
        fences = FENCE.findall("".join(DETAILS.findall(cell.source)))
        if cell.cell_type == "markdown" and fences and waiting is not None:
            pairs.append((waiting, fences[0]))
            waiting = None
    assert waiting is None, f"an exercise without a solution: {waiting and waiting.source}"
    return pairs


def with_solutions(items):
    """Return collected items with each solution after its exercise, in the notebook's kernel."""
    from nbval.plugin import IPyNbCell

    result, sources = [], {}
    for item in items:
        result.append(item)
        if isinstance(item, IPyNbCell):
            if item.parent not in sources:
                sources[item.parent] = {id(c): text for c, text in solutions(item.parent.nb)}
            if source := sources[item.parent].get(id(item.cell)):
                name, cell = f"{item.name}, solved", nbformat.v4.new_code_cell(source)
                options = dict.fromkeys(("check", "skip", "check_exception"), False)
                place = {"cell_num": item.cell_num, "cell": cell, "options": options}
                result.append(IPyNbCell.from_parent(item.parent, name=name, **place))
    return result
