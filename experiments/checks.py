"""What every experiment refuses before it starts."""

from collections.abc import Sized

from torch import Tensor

from circuits import Prompt, SplicedModel, UserError


def one_prompt(model: SplicedModel, prompt: str | Prompt, *, what: str = "an ablation") -> Tensor:
    """Its token ids `[1, pos]`.

    Args:
        what: Is of one prompt, for the message.

    Raises:
        UserError: several prompts, or as `SplicedModel.tokens`.
    """
    ids = model.tokens(prompt)
    if len(ids) != 1:
        raise UserError(f"{what} is of one prompt; got {len(ids)}")
    return ids


def check_prompts(prompts: object) -> None:
    """Refuse what is no list of prompts, or an empty one.

    Raises:
        UserError: it is.
    """
    if isinstance(prompts, str | Prompt) or not isinstance(prompts, Sized) or not len(prompts):
        raise UserError("give a list of prompts, at least one")
