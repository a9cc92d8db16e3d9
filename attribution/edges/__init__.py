"""The direct effects between all nodes of a graph: its edges."""
