"""Smaller U-Nets distilled from larger ones."""
