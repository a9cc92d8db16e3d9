"""The level at which the studies judge."""

LEVEL = 0.05
"""Of p or q, after correction for all that are tested together."""
