"""A set of pairs in two halves, of which neither has a text of the other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import networkx as nx

from circuits import Prompt


def halves(prompts: Sequence[Prompt]) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
    """Divide prompts so that no text is in both halves, clean or corrupted; the order stays.

    Prompts with a text in common are a group, and what several groups share joins them: a pair and
    its reverse, or all pairs with one partner. Whole groups go to the half that has fewer prompts
    so far, the largest first, those of one size in their order.
    """
    texts = nx.Graph([(prompt.text, prompt.corrupted or prompt.text) for prompt in prompts])
    parts = nx.connected_components(texts)
    part_of = {text: number for number, part in enumerate(parts) for text in part}
    groups = defaultdict(list)
    for i, prompt in enumerate(prompts):
        groups[part_of[prompt.text]].append(i)
    sides: tuple[list[int], list[int]] = [], []
    for group in sorted(groups.values(), key=len, reverse=True):
        min(sides, key=len).extend(group)
    first, second = (tuple(prompts[i] for i in sorted(side)) for side in sides)
    return first, second
