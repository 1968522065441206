"""Probes: prompts -> images -> a scorer -> a tidy table -> estimates with intervals.

`kn.probes.text` and its like are each a `base.Probe`, imported at first use; the module that holds
one is `koala_nb.probes.text_probe`.
"""

from __future__ import annotations

import sys
from importlib import import_module, util
from typing import TYPE_CHECKING, Any

import lazy_loader

from koala_nb.core.files import checked_path

if TYPE_CHECKING:
    from koala_nb.probes.base import Probe

MODULES = {  # name of a probe, in commands and as an attribute here -> its module
    "text": "text_probe",
    "composition": "composition_probe",
    "frequency": "frequency_probe",
    "demographics": "bias_probe",  # as its files are named
    "bias": "bias_probe",
    "published": "published_probe",
    "open": "open_probe",
    "safety": "safety_probe",
}
_SHARED = "atoms base bias_estimates labels published_metrics published_probe text_reader".split()
_submodule, _, _ = lazy_loader.attach(__name__, submodules=_SHARED)
REGISTERED: dict[str, Probe] = {}  # probes of one's own, by name


def register(probe: Probe) -> Probe:
    """Make a probe of one's own known to `get`, and so to commands and the report; returns it."""
    REGISTERED[probe.name] = probe
    return probe


def get(name: str) -> Probe:
    """Return a probe by its name, or the `PROBE` of a Python file.

    ValueError, naming those that there are, for another name or a file without one.
    """
    path = checked_path(name, "probe: give a name, or the path of a Python file")
    if path.suffix == ".py" and path.is_file():
        spec = util.spec_from_file_location(f"koala_nb_probe_{path.stem}", path)
        assert spec and spec.loader
        module = sys.modules[spec.name] = util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:  # of whatever stands there
            why = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ValueError(f"{path} cannot be imported ({why}): correct it.") from error
        if not hasattr(module, "PROBE"):
            raise ValueError(f"{path} holds no PROBE: name its probe so.")
        return register(module.PROBE)
    if name in REGISTERED:
        return REGISTERED[name]
    if name not in MODULES:
        names = ", ".join([*MODULES, *REGISTERED])
        raise ValueError(f"probe: choose one of {names}, or a Python file, not {name!r}.")
    return __getattr__(name)


def __getattr__(name: str) -> Any:
    if name in MODULES:
        return import_module(f"{__name__}.{MODULES[name]}").PROBE
    return _submodule(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *MODULES})
