"""What the authors publish about KOALA, as data: the model card and their repository's figure."""

from dataclasses import dataclass

CARD_SOURCE = "model card of etri-vilab/koala-lightning-700m"
FIGURE_SOURCE = "latency and memory figure in the repository youngwanLEE/sdxl-koala"

# The card's table. Transformer blocks are the card's own numbers, per resolution.
CARD_TABLE: list[dict[str, object]] = [
    {
        "U-Net": "SDM-v2.0",
        "parameters": "865M",
        "checkpoint": "3.46GB",
        "transformer blocks": "[1, 1, 1, 1]",
        "mid block": True,
        "latency (s)": 1.131,
    },
    {
        "U-Net": "SDXL-Base-1.0",
        "parameters": "2,567M",
        "checkpoint": "10.3GB",
        "transformer blocks": "[0, 2, 10]",
        "mid block": True,
        "latency (s)": 3.133,
    },
    {
        "U-Net": "KOALA-1B",
        "parameters": "1,161M",
        "checkpoint": "4.4GB",
        "transformer blocks": "[0, 2, 6]",
        "mid block": True,
        "latency (s)": 1.604,
    },
    {
        "U-Net": "KOALA-700M",
        "parameters": "782M",
        "checkpoint": "3.0GB",
        "transformer blocks": "[0, 2, 5]",
        "mid block": False,
        "latency (s)": 1.257,
    },
]
CARD_TABLE_CONDITIONS = (
    "RTX 4090 (24 GB), FP16, 25 denoising steps; SDM-v2.0 at 768 x 768, the others at 1024 x 1024"
)

# (latency in s, peak memory in GB) per GPU; None: out of memory.
LATENCY_GPUS = ("RTX 3060Ti 8GB", "RTX 2080Ti 11GB", "RTX 4090 24GB")
LATENCY_FIGURE: dict[str, tuple[tuple[float, float] | None, ...]] = {
    "KOALA-Turbo-700M": ((0.74, 5.3), (0.54, 4.7), (0.19, 4.9)),
    "KOALA-Turbo-1B": ((0.92, 6.1), (0.66, 5.5), (0.24, 5.7)),
    "KOALA-Lightning-700M": ((2.88, 6.8), (1.94, 8.2), (0.66, 8.3)),
    "KOALA-Lightning-1B": ((3.53, 7.2), (2.33, 8.9), (0.79, 9.1)),
    "SDXL-Base-1.0": (None, (9.65, 10.4), (3.23, 11.9)),
    "SDXL-Turbo": (None, (0.64, 8.3), (0.24, 8.5)),
    "SDXL-Lightning": (None, (2.05, 10.8), (0.72, 11.7)),
    "PixArt-alpha": (None, None, (3.72, 17.3)),
    "PixArt-Sigma": (None, None, (3.98, 17.3)),
    "SSD-1B": (None, (6.34, 9.3), (2.09, 9.4)),
    "Segmind-Vega": ((6.75, 7.2), (4.52, 8.1), (1.49, 8.2)),
}
LATENCY_CONDITIONS = "SDXL-Turbo and KOALA-Turbo at 512 x 512, the others at 1024 x 1024"


@dataclass(frozen=True)
class Card:
    """The card's statements in our own words; each field is a sentence, a list or a citation."""

    what: str
    compression: str
    training: str
    uses: tuple[str, ...]
    out_of_scope: str
    limitations: tuple[str, ...]
    steps_note: str
    licence: str
    citation: str
    source: str


CARD = Card(
    what=(
        "KOALA-Lightning-700M is a latent-diffusion text-to-image model, trained by knowledge "
        "distillation on self-attention; it runs on many consumer GPUs."
    ),
    compression=(
        "Its U-Net comes from SDXL's by leaving out residual and transformer blocks: KOALA-1B is "
        "up to 54 % smaller, KOALA-700M up to 69 %."
    ),
    training=(
        "Teacher SDXL-Lightning, a subset of LAION-POP, 500K iterations at batch 128 on "
        "4 x A100 80GB."
    ),
    uses=(
        "art and design",
        "education and creative tools",
        "research on generative models",
        "safe deployment of models that could produce harmful content",
        "understanding limitations and biases",
    ),
    out_of_scope="Factual or true depictions of people or events.",
    limitations=(
        "long legible text",
        "complex prompts with several attributes",
        "dependence on its training data (LAION-aesthetics-V2 6+)",
    ),
    steps_note='The card\'s prose says "25 denoising steps"; its code uses 10.',
    licence=(
        "CreativeML Open RAIL++-M for non-commercial use, proprietary for commercial use "
        "(the authors' repository)"
    ),
    citation=(
        "Lee, Park, Cho, Lee, Hwang: KOALA: Empirical Lessons Toward Memory-Efficient and Fast "
        "Diffusion Models for Text-to-Image Synthesis. NeurIPS 2024, arXiv:2312.04005."
    ),
    source=CARD_SOURCE,
)
