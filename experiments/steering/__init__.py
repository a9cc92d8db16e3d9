"""Latents raised or set, and what the model makes of it."""
