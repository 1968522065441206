"""What reads an image or a prompt: text, objects, faces, skin, safety."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submodules=["detection", "disclosure", "faces", "nsfw", "prompt_filter", "registry"]
)
