"""Smaller U-Nets distilled from larger ones."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "losses": ["FEATURES", "Distiller", "FeatureHooks", "feature_pairs", "training_cost"],
        "page": ["write_page"],
        "similarity": "cka noisy_inputs outputs principal_colours".split(),
    },
)
