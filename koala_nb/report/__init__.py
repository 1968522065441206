"""Notebooks run with other parameters; the audit, its claims and its pages."""
