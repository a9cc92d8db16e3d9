"""What every experiment refuses before it starts."""

from torch import Tensor

from circuits import Prompt, SplicedModel, UserError


def one_prompt(model: SplicedModel, prompt: str | Prompt) -> Tensor:
    """Its token ids `[1, pos]`.

    Raises:
        UserError: several prompts, or as `SplicedModel.tokens`.
    """
    ids = model.tokens(prompt)
    if len(ids) != 1:
        raise UserError(f"an ablation is of one prompt; got {len(ids)}")
    return ids
