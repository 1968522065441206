"""One page of the API a module, written from the files of the package."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

PAGE = """# {name}

```{{eval-rst}}
.. automodule:: {module}
   :members:
   :show-inheritance:
```
"""
# Title -> the package whose modules stand under it, from the ground floor up.
GROUPS = {
    "Catalogue, files and devices": "core",
    "Statistics": "stats",
    "Figures and exercises": "display",
    "Models": "models",
    "Generation": "generation",
    "Attention": "attention",
    "Distillation": "distillation",
    "Scorers": "scorers",
    "Speed and cost": "speed",
    "Probes": "probes",
    "Reports": "report",
    "The embedded family and its world": "nano",
    "Command line and widgets": "",
}
# The names that `import koala_nb as kn` offers, in the order of koala_nb.__all__.
FACE = """# API

`import koala_nb as kn` is the whole of what a notebook needs at first. The modules below hold
what the notebooks call beyond it; their docstrings are these pages.

## Public face

"""


def write(package: Path, out: Path) -> None:
    """Write out/index.md and one page a module; a page whose text is unchanged is left alone."""
    import koala_nb

    out.mkdir(parents=True, exist_ok=True)
    files = sorted(p for p in package.rglob("*.py") if not p.stem.startswith("__"))
    names = [".".join(p.relative_to(package.parent).with_suffix("").parts) for p in files]
    for name in names:
        _keep(out / f"{name}.md", PAGE.format(name=name.removeprefix("koala_nb."), module=name))
    index = FACE
    for public in koala_nb.__all__:
        value = getattr(koala_nb, public)
        if isinstance(value, ModuleType):
            continue
        target = f"{value.__module__}.{value.__name__}"
        signature = f"{{py:obj}}`kn.{public} <{target}>`"
        index += f"- {signature}: {_sentence(public)}\n"
    for title, room in GROUPS.items():
        inside = f"{package.name}.{room}".rstrip(".")
        pages = "\n".join(name for name in names if name.rpartition(".")[0] == inside)
        index += f"\n## {title}\n\n```{{toctree}}\n:maxdepth: 1\n\n{pages}\n```\n"
    _keep(out / "index.md", index)
    for page in out.glob("koala_nb.*.md"):
        if page.stem not in names:
            page.unlink()


def _sentence(public: str) -> str:
    import koala_nb

    return (getattr(koala_nb, public).__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")


def _keep(path: Path, text: str) -> None:
    if not path.exists() or path.read_text("utf-8") != text:
        path.write_text(text, "utf-8")
