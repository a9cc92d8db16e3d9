"""Which positions of each prompt belong to which named span, so that latents can be pooled."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property

from circuits import ErrorNode, LatentNode, Prompt, Site, SplicedModel, UserError
from circuits.nodes import hashed_once

REST, END = "rest", "end"
"""The spans of what no group of a pattern names, and of the last position if none names it."""

ALL = "all"
"""The span of every position but BOS, where a prompt is taken as one."""

NAME = r"[^\s@/]+"
Pattern = str | re.Pattern[str]


@hashed_once
@dataclass(frozen=True)
class SpanNode:
    """One latent at all positions of a span; with the latent None, the error there."""

    site: Site
    latent: int | None
    span: str

    def __str__(self) -> str:
        what = "error" if self.latent is None else f"latent.{self.latent}"
        return f"{self.site}/{what}@{self.span}"

    @classmethod
    def parse(cls, text: str) -> SpanNode:
        """The node whose `str` is `text`: `mlp.3/latent.901@subject` or `mlp.3/error@subject`.

        Raises:
            UserError: `text` is no such name.
        """
        match = re.fullmatch(rf"(\w+\.\d+)/(?:error|latent\.(\d+))@({NAME})", text)
        if match is None:
            raise UserError(
                f"{text!r} is not a node at a span; names look like mlp.3/latent.901@subject "
                "or mlp.3/error@subject"
            )
        return cls(Site.parse(match[1]), None if match[2] is None else int(match[2]), match[3])


@dataclass(frozen=True)
class Spans:
    """The spans of several prompts. BOS (position 0) is in none, every other position in one.

    Attributes:
        names: In reading order; the same for every set of prompts that is divided in one way.
        places: For each prompt, the positions of the spans that it has.
    """

    names: tuple[str, ...]
    places: tuple[Mapping[str, tuple[int, ...]], ...]

    def __post_init__(self) -> None:
        wrong = [name for name in self.names if not re.fullmatch(NAME, name)]
        if wrong or len(set(self.names)) < len(self.names):
            raise UserError(
                f"spans named {list(self.names)}; give different names without spaces, @ and /"
            )
        for i, spans in enumerate(self.places):
            if strangers := spans.keys() - set(self.names):
                raise UserError(
                    f"prompt {i} has a span {min(strangers)!r}; it is not among the names "
                    f"{', '.join(self.names)}"
                )
            found = sorted(pos for positions in spans.values() for pos in positions)
            if found != list(range(1, len(found) + 1)):
                raise UserError(
                    f"the spans of prompt {i} hold the positions {found}; "
                    "each position from 1 to the last must be in exactly one span"
                )

    def __len__(self) -> int:
        return len(self.places)

    def nodes(self, node: SpanNode, i: int) -> list[LatentNode | ErrorNode]:
        """`node` at each of its positions in prompt `i`; none if the prompt has no such span.

        Raises:
            UserError: no prompt can have a span of that name.
        """
        if node.span not in self.names:
            close = get_close_matches(node.span, self.names, n=3) or self.names
            raise UserError(f"no span {node.span!r} for {node}; there is {', '.join(close)}")
        positions = self.places[i].get(node.span, ())
        if node.latent is None:
            return [ErrorNode(node.site, pos) for pos in positions]
        return [LatentNode(node.site, node.latent, pos) for pos in positions]

    def span_of(self, i: int, pos: int) -> str | None:
        """The span of position `pos` of prompt `i`; None for BOS.

        Raises:
            UserError: the prompt has no such position.
        """
        spans = self._by_position[i]
        if not 0 <= pos <= len(spans):
            raise UserError(f"no position {pos}; prompt {i} has 0 to {len(spans)}")
        return spans.get(pos)

    @cached_property
    def _by_position(self) -> tuple[dict[int, str], ...]:
        return tuple(
            {pos: name for name, positions in spans.items() for pos in positions}
            for spans in self.places
        )


def aligned(model: SplicedModel, prompts: Sequence[str | Prompt]) -> Spans:
    """Every position a span of its own, named by its number.

    Raises:
        UserError: the prompts differ in length, or the model cannot read one.
    """
    lengths = _lengths(model, prompts)
    if len(set(lengths)) > 1:
        odd = next(i for i, length in enumerate(lengths) if length != lengths[0])
        raise UserError(
            f"prompt {odd} has {lengths[odd]} tokens with BOS and prompt 0 has {lengths[0]}; "
            "give prompts of one length, or spans by_pattern or whole"
        )
    names = tuple(str(pos) for pos in range(1, lengths[0]))
    each = {name: (int(name),) for name in names}
    return Spans(names, tuple(each for _ in prompts))


def whole(model: SplicedModel, prompts: Sequence[str | Prompt]) -> Spans:
    """One span `all` of every position.

    Raises:
        UserError: the model cannot read one of the prompts.
    """
    places = [{ALL: tuple(range(1, length))} for length in _lengths(model, prompts)]
    return Spans((ALL,), tuple(places))


def by_pattern(
    model: SplicedModel,
    prompts: Sequence[str | Prompt],
    pattern: Pattern | Sequence[Pattern],
    *,
    end: bool = True,
) -> Spans:
    """Spans are the named groups of a regular expression: `the (?P<subject>\\w+) near`.

    A token belongs to the first group (in the order of the pattern) that holds a character of it,
    spaces around the token not counted. What no group names is the span `rest`.

    Args:
        model: Its tokenizer says where tokens begin and end.
        prompts: Texts; of a `Prompt`, the clean one.
        pattern: Searched for in each text; of several, the first that is found counts.
        end: Whether the last position, if no group names it, is the span `end`.

    Raises:
        UserError: a pattern that is none or names no group, prompts in which none is found, groups
            of which one has no token left, or a prompt that the model cannot read.
    """
    patterns = _compiled(pattern)
    texts = _texts(prompts)
    matches = [next(filter(None, (p.search(text) for p in patterns)), None) for text in texts]
    lost = [i for i, match in enumerate(matches) if match is None]
    if lost:
        raise UserError(
            f"the pattern is not found in {len(lost)} of {len(matches)} prompts, first in prompt "
            f"{lost[0]}, {texts[lost[0]]!r}; add a pattern for them or leave them out"
        )
    groups = [name for p in patterns for name in p.groupindex]
    found: list[str] = [*groups, REST, *([END] if end else [])]
    names = tuple(dict.fromkeys(found))
    places = [_places(model, match, end) for match in matches if match]
    return Spans(names, tuple(places))


def check_spans(spans: Spans, prompts: Sequence[str | Prompt]) -> None:
    """Check that there are spans of each prompt.

    Raises:
        UserError: no prompts, or spans of more or fewer.
    """
    if not len(prompts) or len(prompts) != len(spans):
        raise UserError(
            f"{len(prompts)} prompts and spans of {len(spans)}; give at least one prompt, and the "
            "spans of the same prompts"
        )


def spans_of_others(
    model: SplicedModel, others: Sequence[Prompt], given: Spans | None, spans: Spans, name: str
) -> Spans:
    """The spans of prompts to test on, by default each position one; of no prompts none.

    Args:
        given: Those of `others`; `name` is that of the argument, for the message.
        spans: Those of the prompts that nodes are chosen on.

    Raises:
        UserError: `given` are not of `others`, or the names are not those of `spans`.
    """
    if not len(others):
        return Spans(spans.names, ())
    found = aligned(model, others) if given is None else given
    check_spans(found, others)
    if set(found.names) != set(spans.names):
        raise UserError(
            f"the prompts have the spans {', '.join(spans.names)} and those to test on "
            f"{', '.join(found.names)}; give {name}=, made in the same way"
        )
    return found


def check_partners(spans: Spans, partners: Spans) -> None:
    """Check that each prompt and its corrupted partner have the same spans, equally long.

    Patching goes by position: a span whose length differs would get another span's values.

    Args:
        spans: Of the clean texts.
        partners: Of the corrupted ones: `by_pattern(model, [p.corrupted for p in prompts], ...)`.

    Raises:
        UserError: they differ; the sentence names the first prompt and span.
    """
    if len(spans) != len(partners):
        raise UserError(
            f"spans of {len(spans)} prompts and {len(partners)} partners; give one each"
        )
    for i, (clean, corrupted) in enumerate(zip(spans.places, partners.places, strict=True)):
        for name in dict.fromkeys([*clean, *corrupted]):
            here, there = len(clean.get(name, ())), len(corrupted.get(name, ()))
            if here != there:
                raise UserError(
                    f"the span {name!r} of prompt {i} has {here} tokens and {there} in its "
                    "partner; give pairs whose spans are equally long"
                )


def _places(model: SplicedModel, match: re.Match[str], end: bool) -> dict[str, tuple[int, ...]]:
    """The spans of one text, from where the pattern was found in it."""
    tokens = _offsets(model, match.string)
    groups = {name: match.span(name) for name in match.re.groupindex if match[name]}
    by_pos = {pos: _group(groups, *token) for pos, token in tokens.items()}
    last = max(by_pos)
    if end and by_pos[last] is None:
        by_pos[last] = END
    for name, (start, stop) in groups.items():
        if name not in by_pos.values() and match.string[start:stop].strip():
            raise UserError(
                f"the group {name!r} has no token of its own in {match.string!r}: each has a "
                "character of another group; let every group cover tokens that no other one does"
            )
    spans: dict[str, tuple[int, ...]] = {}
    for pos, name in by_pos.items():
        spans[name or REST] = (*spans.get(name or REST, ()), pos)
    return spans


def _group(groups: Mapping[str, tuple[int, int]], start: int, stop: int) -> str | None:
    """The first group with a character of `start` to `stop`."""
    return next((name for name, (a, b) in groups.items() if max(a, start) < min(b, stop)), None)


def _offsets(model: SplicedModel, text: str) -> dict[int, tuple[int, int]]:
    """Where each token but BOS begins and ends in `text`, without the spaces around it."""
    ids = model.vocabulary.encode(text)
    if not model.tokenizer.is_fast:
        raise UserError(
            f"the tokenizer of {model.name} does not say where its tokens are; use a fast one"
        )
    found = model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    offsets = found.offset_mapping[len(found.input_ids) - len(ids) + 1 :]  # a typed BOS left out
    return {pos: _stripped(text, *offset) for pos, offset in enumerate(offsets, 1)}


def _stripped(text: str, start: int, stop: int) -> tuple[int, int]:
    """`start` to `stop` without spaces at its ends, unless there is nothing else."""
    inner = text[start:stop].strip()
    if not inner:
        return start, stop
    start += text[start:stop].index(inner)
    return start, start + len(inner)


def _compiled(pattern: Pattern | Sequence[Pattern]) -> list[re.Pattern[str]]:
    """The patterns, each with a named group."""
    given = [pattern] if isinstance(pattern, str | re.Pattern) else pattern
    known = isinstance(given, Sequence) and all(isinstance(p, str | re.Pattern) for p in given)
    try:
        patterns = [re.compile(one) for one in given] if known else []
    except re.error as error:
        raise UserError(f"{error.pattern!r} is no regular expression: {error.msg}") from None
    if not patterns or not all(one.groupindex for one in patterns):
        raise UserError(
            f"{given!r} names no span; give patterns with named groups: (?P<subject>\\w+)"
        )
    return patterns


def _texts(prompts: Iterable[str | Prompt]) -> list[str]:
    """The clean texts."""
    texts = [prompt.text if isinstance(prompt, Prompt) else prompt for prompt in prompts]
    odd = next((text for text in texts if not isinstance(text, str)), "")
    if odd != "":
        raise UserError(f"a prompt is a text or a Prompt; got {type(odd).__name__} {odd!r}")
    return texts


def _lengths(model: SplicedModel, prompts: Sequence[str | Prompt]) -> list[int]:
    """Tokens of each prompt, BOS included."""
    if not len(prompts):
        raise UserError("no prompts given; give at least one")
    return [len(model.vocabulary.encode(text)) for text in _texts(prompts)]
