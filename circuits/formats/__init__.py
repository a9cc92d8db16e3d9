"""Dictionaries as the libraries of the field keep them, read into a `Dictionary`."""
