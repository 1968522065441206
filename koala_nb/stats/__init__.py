"""Estimates with intervals: nothing here knows an image."""
