"""How well attributed effects foretell measured ones."""
