"""A name -> a diffusers pipeline; a configuration -> a counted U-Net."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules=["figures", "page", "unet"])
