from koala_nb.probes import atoms as atoms
from koala_nb.probes import base as base
from koala_nb.probes import bias_estimates as bias_estimates
from koala_nb.probes import labels as labels
from koala_nb.probes import published_metrics as published_metrics
from koala_nb.probes import text_reader as text_reader
from koala_nb.probes.base import Probe
from koala_nb.probes.bias_probe import BiasProbe
from koala_nb.probes.composition_probe import CompositionProbe
from koala_nb.probes.frequency_probe import FrequencyProbe
from koala_nb.probes.open_probe import OpenProbe
from koala_nb.probes.published_probe import PublishedProbe
from koala_nb.probes.safety_probe import SafetyProbe
from koala_nb.probes.text_probe import TextProbe

MODULES: dict[str, str]
REGISTERED: dict[str, Probe]
text: TextProbe
composition: CompositionProbe
frequency: FrequencyProbe
bias: BiasProbe
published: PublishedProbe
open: OpenProbe
safety: SafetyProbe

def register(probe: Probe) -> Probe: ...
def get(name: str) -> Probe: ...
