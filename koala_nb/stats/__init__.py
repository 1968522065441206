"""Estimates with intervals: nothing here knows an image."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["estimates", "imbalance", "misclassification", "simulation", "trends"],
)
