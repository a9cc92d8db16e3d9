"""Circuits, chosen nodes that are kept while all others are set to a reference."""
