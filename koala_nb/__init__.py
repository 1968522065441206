"""Notebooks on the KOALA text-to-image models: the helper module.

Names are imported at first use (`__init__.pyi` says from where), so that `import koala_nb` loads
neither torch nor pandas.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
