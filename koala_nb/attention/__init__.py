"""Attention captured while a pipeline draws: maps, words, a page."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "buffers": ["layer_grid"],
        "capture": ["CannotCapture", "capture_attention"],
        "edits": ["Edit", "Move", "Replace", "Reweight", "Site"],
        "maps": ["AXES", "Attention", "tokens_of", "words_of"],
        "page": ["overlay", "place", "write_page"],
    },
)
