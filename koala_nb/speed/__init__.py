"""Latency, memory, roofline and cost."""
