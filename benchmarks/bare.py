"""What times are multiples of: forward and backward of the Hugging Face model, no hooks."""

from typing import Any

from torch import Tensor

from circuits import SplicedModel


def bare(model: SplicedModel, ids: Tensor, right: int, wrong: int) -> None:
    """From the embeddings of `ids [1, pos]` to a logit difference at the last position, and back.

    Like the passes it stands beside, it computes the last position's logits alone.
    """
    huggingface: Any = model.bridge.original_model
    embedding = huggingface.get_input_embeddings()(ids).detach().requires_grad_()
    logits = huggingface(inputs_embeds=embedding, logits_to_keep=1).logits
    (logits[0, -1, right] - logits[0, -1, wrong]).backward()
