"""Models and dictionaries by name: from the hub or a folder, to where passes read them."""
