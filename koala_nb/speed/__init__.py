"""Latency, memory, roofline, throughput and cost."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "cost": ["run_cost"],
        "figures": ["show_roofline", "show_scaling", "show_stacks", "show_variants", "write_page"],
        "latency": ["cases_of", "measure"],
        "roofline": ["limit_seconds", "machine_rates", "predicted_gb", "unet_work"],
        "throughput": ["SHORTCUTS", "benchmark_prompts", "plain_loop"],
        "timing": ["time_interleaved"],
    },
)
