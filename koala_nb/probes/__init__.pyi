from typing import Any

from koala_nb.probes.base import Probe
from koala_nb.probes.bias import BiasProbe
from koala_nb.probes.composition import CompositionProbe
from koala_nb.probes.frequency import FrequencyProbe
from koala_nb.probes.published import PublishedProbe
from koala_nb.probes.safety import SafetyProbe
from koala_nb.probes.text import TextProbe

MODULES: dict[str, str]
REGISTERED: dict[str, Probe]
text: TextProbe
composition: CompositionProbe
frequency: FrequencyProbe
bias: BiasProbe
published: PublishedProbe
safety: SafetyProbe

def register(probe: Probe) -> Probe: ...
def get(name: str) -> Any: ...
