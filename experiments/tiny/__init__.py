"""How the bundled model and its dictionaries are made and measured."""
