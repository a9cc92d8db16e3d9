"""stub"""


def label_latents(model, graph, texts=None): ...
