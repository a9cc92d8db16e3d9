"""What every experiment refuses before it starts."""

from torch import Tensor

from circuits import Prompt, Reference, SplicedModel, UserError


def one_prompt(model: SplicedModel, prompt: str | Prompt) -> Tensor:
    """Its token ids `[1, pos]`.

    Raises:
        UserError: several prompts, or as `SplicedModel.tokens`.
    """
    ids = model.tokens(prompt)
    if len(ids) != 1:
        raise UserError(f"an ablation is of one prompt; got {len(ids)}")
    return ids


def check_reference(model: SplicedModel, reference: Reference, ids: Tensor) -> None:
    """Refuse a reference whose sites or positions are not those of the model and `ids [1, pos]`."""
    missing = [str(site) for site in model.sites if site not in reference.trace.sites]
    if missing:
        raise UserError(
            f"the reference has no values at {', '.join(missing)}; make it with the same model"
        )
    n_reference, n_prompt = len(reference.trace.ids), ids.shape[1]
    if n_reference != n_prompt:
        raise UserError(
            f"the reference has {n_reference} tokens and the prompt {n_prompt}; "
            "they must be equally long, so that positions correspond"
        )


def check_batch_size(batch_size: int) -> None:
    """Refuse a batch of nothing."""
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size}; a pass needs at least one row")
