"""Notebooks on the KOALA text-to-image models: the helper module.

Attributes are imported at first use, so that `import koala_nb` loads neither torch nor pandas.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Public name -> (submodule, name in it).
_PUBLIC = {
    "systems": ("core.catalog", "systems"),
    "find": ("core.catalog", "find"),
    "load": ("models.load", "load"),
    "quiet": ("models.load", "quiet"),
    "build_unet": ("models.unet", "build_unet"),
    "capture_attention": ("attention.capture", "capture_attention"),
    "generate": ("generation.generate", "generate"),
    "list_steps": ("models.load", "list_steps"),
    "environment": ("core.files", "environment"),
    "banner": ("core.files", "banner"),
    "run_report": ("report.run", "run"),
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'koala_nb' has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    return getattr(import_module(f"koala_nb.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
