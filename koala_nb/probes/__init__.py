"""Probes: prompts -> images -> a scorer -> a tidy table -> estimates with intervals."""
