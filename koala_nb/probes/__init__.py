"""Probes: prompts -> images -> a scorer -> a tidy table -> estimates with intervals.

`kn.probes.text` and its like are each a `base.Probe`, imported at first use.
"""

from __future__ import annotations

import sys
from importlib import import_module, util
from pathlib import Path
from types import ModuleType
from typing import Any

import lazy_loader

MODULES = {  # name of a probe, in commands and files -> its module here
    "text": "text",
    "composition": "composition",
    "frequency": "frequency",
    "demographics": "bias",  # as its files are named
    "bias": "bias",
    "published": "published",
    "safety": "safety",
}
__getattr__, _, _ = lazy_loader.attach(
    __name__,
    submodules=["atoms", "base", "bias_estimates", "labels", "published_metrics", "text_reader"],
)
REGISTERED: dict[str, Any] = {}  # probes of one's own, by name


def register(probe: Any) -> Any:
    """Make a probe of one's own known to `get`, and so to commands and the report; returns it."""
    REGISTERED[probe.name] = probe
    return probe


def get(name: str) -> Any:
    """Return a probe by its name, or the `PROBE` of a Python file.

    ValueError, naming those that there are, for another name or a file without one.
    """
    path = Path(name)
    if path.suffix == ".py" and path.is_file():
        spec = util.spec_from_file_location(f"koala_nb_probe_{path.stem}", path)
        assert spec and spec.loader
        module = sys.modules[spec.name] = util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if not hasattr(module, "PROBE"):
            raise ValueError(f"{path} holds no PROBE: name its probe so.")
        return register(module.PROBE)
    if name in REGISTERED:
        return REGISTERED[name]
    if name not in MODULES:
        names = ", ".join([*MODULES, *REGISTERED])
        raise ValueError(f"probe: choose one of {names}, or a Python file, not {name!r}.")
    module = import_module(f"{__name__}.{MODULES[name]}")
    return getattr(module, "PROBE", module)


def _probe(name: str) -> property:
    """Return an attribute that is a module's probe, also once the module has been imported."""
    return property(
        lambda package: import_module(f"{__name__}.{name}").PROBE, lambda package, module: None
    )


class _Package(ModuleType):
    text = _probe("text")
    composition = _probe("composition")
    frequency = _probe("frequency")
    bias = _probe("bias")
    published = _probe("published")
    safety = _probe("safety")

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *MODULES.values()})


sys.modules[__name__].__class__ = _Package
