"""Smaller U-Nets distilled from larger ones."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "losses": ["FEATURES", "Distiller", "FeatureHooks", "feature_pairs", "training_cost"],
        "similarity": "cka conditions noisy_inputs outputs principal_colours".split(),
    },
)
