from typing import Any

from koala_nb.probes.base import Probe
from koala_nb.probes.text import TextProbe

MODULES: dict[str, str]
REGISTERED: dict[str, Probe]
text: TextProbe

def register(probe: Probe) -> Probe: ...
def get(name: str) -> Any: ...
