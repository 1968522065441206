"""Attention captured while a pipeline draws: maps, words, a page."""
