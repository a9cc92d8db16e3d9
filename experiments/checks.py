"""What every experiment refuses before it starts."""

from collections.abc import Collection, Sequence

from torch import Tensor

from circuits import Prompt, SplicedModel, UserError
from experiments.datasets.pairs import without_overlap
from experiments.spans import SpanNode

_LIKE = (
    "nodes at spans, such as dataset_circuit(...).nodes or SpanNode.parse('mlp.3/latent.901@end')"
)


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


def check_prompts(prompts: object, *, texts: bool = False) -> None:
    """Refuse what is no list of prompts, or an empty one.

    Args:
        texts: Whether a text will do for a prompt.

    Raises:
        UserError: it is.
    """
    if isinstance(prompts, str | Prompt) or not isinstance(prompts, Collection) or not len(prompts):
        raise UserError("give a list of prompts, at least one")
    kinds = str | Prompt if texts else Prompt
    wanted = "texts or Prompts" if texts else "Prompt(text, target=..., foil=..., corrupted=...)"
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, kinds):
            raise UserError(f"prompt {i} is {prompt!r}; give {wanted}")


def check_apart(prompts: Sequence[Prompt], others: Sequence[Prompt], what: str) -> None:
    """Refuse prompts to test on that are among those on which the result was found.

    Args:
        others: To test on; there may be none.
        what: They are, for the message.

    Raises:
        UserError: a text or a pair of theirs is among `prompts`, or they are no list of prompts.
    """
    if isinstance(others, Collection) and not len(others):
        return
    check_prompts(others)
    shared = without_overlap(prompts, list(others)).left_out
    if shared:
        each = {how: set(texts) for how, texts in shared.items()}
        ways = [f"{len(texts)} as {how} ({min(texts)!r})" for how, texts in each.items()]
        raise UserError(
            f"{sum(map(len, each.values()))} of {len({p.text for p in others})} {what} texts are "
            f"among the prompts, {' and '.join(ways)}; a result is tested on others: "
            "datasets.without_overlap(prompts, others)"
        )


def tested_nodes(nodes: object, *, errors: bool) -> tuple[SpanNode, ...]:
    """Nodes at spans, each once: q is corrected for the number of them.

    Args:
        errors: Whether errors are among what can be tested.

    Raises:
        UserError: no list of nodes at spans, or errors where there can be none.
    """
    if isinstance(nodes, str | SpanNode) or not isinstance(nodes, Collection):
        raise UserError(f"give a list of {_LIKE}; got {type(nodes).__name__}")
    for node in nodes:
        if not isinstance(node, SpanNode):
            raise UserError(f"{node!s} is no node at a span; give {_LIKE}")
        if node.latent is None and not errors:
            raise UserError(f"{node} is an error, and latents are tested here; leave it out")
    return tuple(dict.fromkeys(nodes))
