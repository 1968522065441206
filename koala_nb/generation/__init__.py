"""Prompts x seeds -> images with records, in one process or many."""
