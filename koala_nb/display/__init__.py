"""Figures and exercises: what a notebook's cell shows."""
