"""Every position is in one span, and in the one that the words of the text say."""

import re
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from circuits import ErrorNode, LatentNode, Prompt, Site, UserError
from circuits.vocabulary import Vocabulary
from experiments.datasets import DATASETS, load_pairs
from experiments.datasets.patterns import SPANS as DATASET_SPANS
from experiments.named import spans_for
from experiments.spans import SpanNode, Spans, aligned, by_pattern, check_partners, whole
from experiments.tasks import TASKS
from experiments.tasks.spans import SPANS

NEAR = r"^the (?P<subject>\w+) (?P<preposition>\w+) the (?P<attractor>\w+)$"
MLP = Site(3, "mlp")
PIECES = {
    "spaces before words": pre_tokenizers.Metaspace(),  # as Gemma's
    "spaces in words, bytes": pre_tokenizers.ByteLevel(add_prefix_space=False),  # as GPT-2's
    "spaces apart": pre_tokenizers.Split(" ", "isolated"),
}


def texts_of(name: str) -> list[str]:
    pairs = Random(0).sample(list(load_pairs(name)), 25)
    return [text for prompt in pairs for text in (prompt.text, str(prompt.corrupted))]


@pytest.fixture(scope="module", params=PIECES)
def pieces(request) -> Any:
    """Of a model only its tokenizer, which cuts most words of the bundled sets in pieces."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = PIECES[request.param]
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([text for name in DATASETS for text in texts_of(name)], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", unk_token="<unk>"
    )
    vocabulary = Vocabulary(fast, "pieces", 200, len(fast))
    return SimpleNamespace(vocabulary=vocabulary, tokenizer=fast, name="pieces")


def by_words(text: str, patterns) -> dict[str, tuple[int, ...]]:
    """The spans of a text whose words are its tokens, counting the words before each group."""
    match = next(m for m in (re.search(pattern, text) for pattern in patterns) if m)
    spans, n = {}, len(text.split())
    for name, words in match.groupdict().items():
        if words:
            first = len(text[: match.start(name)].split()) + 1
            spans[name] = tuple(range(first, first + len(words.split())))
    named = {pos for positions in spans.values() for pos in positions}
    if n not in named:
        spans["end"] = (n,)
    if rest := tuple(pos for pos in range(1, n) if pos not in named):
        spans["rest"] = rest
    return spans


@pytest.mark.parametrize("split", ["train", "heldout"])
@pytest.mark.parametrize("name", TASKS)
def test_the_spans_of_every_task_are_its_words(tiny, name, split):
    prompts = TASKS[name].prompts(split, n=60)
    spans = by_pattern(tiny, prompts, SPANS[name])
    for prompt, places in zip(prompts, spans.places, strict=True):
        assert places == by_words(prompt.text, SPANS[name])
    partners = by_pattern(tiny, [str(prompt.corrupted) for prompt in prompts], SPANS[name])
    check_partners(spans, partners)
    assert spans.names == partners.names


def test_by_hand(tiny):
    spans = by_pattern(tiny, ["the boy near the car", "the women behind the trees"], NEAR)
    assert spans.names == ("subject", "preposition", "attractor", "rest", "end")
    assert spans.places[0] == spans.places[1] == {
        "rest": (1, 4), "subject": (2,), "preposition": (3,), "attractor": (5,),
    }  # fmt: skip
    assert [spans.span_of(0, pos) for pos in range(6)] == [
        None, "rest", "subject", "preposition", "rest", "attractor",
    ]  # fmt: skip
    node = SpanNode(MLP, 7, "rest")
    assert spans.nodes(node, 1) == [LatentNode(MLP, 7, 1), LatentNode(MLP, 7, 4)]
    assert spans.nodes(SpanNode(MLP, None, "rest"), 1) == [ErrorNode(MLP, 1), ErrorNode(MLP, 4)]
    assert spans.nodes(SpanNode(MLP, 7, "end"), 1) == []  # its last word has a name


def test_the_last_position_is_the_end_unless_it_has_a_name_or_none_is_wanted(tiny):
    pattern = r"the (?P<subject>\w+)"
    (places,) = by_pattern(tiny, ["the boy near the car"], pattern).places
    assert places == {"rest": (1, 3, 4), "subject": (2,), "end": (5,)}
    spans = by_pattern(tiny, ["the boy near the car"], pattern, end=False)
    assert (spans.names, spans.places[0]["rest"]) == (("subject", "rest"), (1, 3, 4, 5))


def test_a_bos_that_was_typed_is_no_token_of_the_text(tiny):
    typed = f"{tiny.tokenizer.bos_token} the boy near the car"
    (places,) = by_pattern(tiny, [typed], NEAR.removeprefix("^")).places
    assert places == by_pattern(tiny, ["the boy near the car"], NEAR).places[0]


@pytest.mark.parametrize("name", DATASETS)
def test_a_piece_of_a_word_is_in_the_span_of_its_first_named_letter(pieces, name):
    """Against letters: each has a group or none, and a token the first group of its letters."""
    texts = texts_of(name)
    spans = spans_for(pieces, name, [Prompt(text) for text in texts])(
        [Prompt(text) for text in texts]
    )
    several = 0
    for text, places in zip(texts, spans.places, strict=True):
        match = next(m for m in (re.search(p, text) for p in DATASET_SPANS[name]) if m)
        order = list(match.groupdict())
        letters = [
            {g for g in order if match.start(g) <= i < match.end(g)} for i in range(len(text))
        ]
        offsets = pieces.tokenizer(text, return_offsets_mapping=True).offset_mapping
        expected = {}
        for pos, (start, stop) in enumerate(offsets, 1):
            inside = [i for i in range(start, stop) if not text[i].isspace()]
            groups = set().union(*(letters[i] for i in inside or range(start, stop)))
            other = "end" if pos == len(offsets) else "rest"
            span = min(groups, key=order.index) if groups else other
            expected.setdefault(span, []).append(pos)
        assert {span: list(positions) for span, positions in places.items()} == expected
        several += any(len(expected.get(group, ())) > 1 for group in order)
    assert several  # else nothing was in pieces


def test_a_space_before_a_token_is_not_its_letter_and_a_group_may_begin_inside_a_token(tiny):
    """The first group ends in the space before `boy`; the other begins in the middle of it."""
    (places,) = by_pattern(tiny, ["the boy near"], r"(?P<first>the )(?P<second>boy)").places
    assert places == {"first": (1,), "second": (2,), "end": (3,)}
    (places,) = by_pattern(tiny, ["the boy near"], r"b(?P<inside>oy)").places
    assert places == {"rest": (1,), "inside": (2,), "end": (3,)}


def test_a_token_with_its_space_is_not_of_the_group_that_ends_in_the_space(pieces):
    pattern = r"(?P<first>The )(?P<second>uncle)"
    (places,) = by_pattern(pieces, ["The uncle that"], pattern).places
    offsets = pieces.tokenizer("The uncle that", return_offsets_mapping=True).offset_mapping
    second = tuple(
        pos for pos, (a, b) in enumerate(offsets, 1) if set(range(a, b)) & set(range(4, 9))
    )
    assert places["second"] == second


def test_aligned_and_whole(tiny):
    prompts = ["the boy near the car", Prompt("the women behind the trees")]
    spans = aligned(tiny, prompts)
    assert spans.names == ("1", "2", "3", "4", "5")
    assert all(places == {str(pos): (pos,) for pos in range(1, 6)} for places in spans.places)
    assert whole(tiny, [*prompts, "the boy"]).places[2] == {"all": (1, 2)}
    with pytest.raises(UserError, match="prompt 2 has 3 tokens with BOS and prompt 0 has 6"):
        aligned(tiny, [*prompts, "the boy"])
    with pytest.raises(UserError, match="no prompts given"):
        whole(tiny, [])


def test_partners_of_other_spans_are_refused(tiny):
    pattern = r"^the (?P<adjectives>(?:(?:tall|old) )+)?(?P<subject>\w+) near"
    clean = by_pattern(tiny, ["the tall boy near", "the tall old boy near"], pattern)
    same = by_pattern(tiny, ["the old boy near", "the old tall man near"], pattern)
    check_partners(clean, same)
    shorter = by_pattern(tiny, ["the old boy near", "the old man near"], pattern)
    with pytest.raises(UserError, match="'adjectives' of prompt 1 has 2 tokens and 1 in its"):
        check_partners(clean, shorter)
    without = by_pattern(tiny, ["the boy near", "the old tall man near"], pattern)
    with pytest.raises(UserError, match="'adjectives' of prompt 0 has 1 tokens and 0"):
        check_partners(clean, without)
    with pytest.raises(UserError, match="2 prompts and 1 partners"):
        check_partners(clean, by_pattern(tiny, ["the boy near"], pattern))


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        (r"^a (?P<subject>\w+)", "not found in 2 of 2 prompts, first in prompt 0, 'the boy near"),
        ([r"(?P<x>boy)", r"^a (?P<x>\w+)"], "not found in 1 of 2 prompts, first in prompt 1"),
        (r"(?P<subject>\w+", "is no regular expression: missing"),
        (r"the \w+", "names no span"),
        ([], "names no span"),
        ([NEAR, "the"], "names no span"),
        (r"(?P<noun_phrase>the (?P<noun>\w+))", "'noun' has no token of its own"),
        (r"the (?P<first>\w)(?P<others>\w+)", "'others' has no token of its own"),
    ],
)
def test_patterns_that_name_nothing(tiny, pattern, says):
    with pytest.raises(UserError, match=re.escape(says)):
        by_pattern(tiny, ["the boy near the car", "the women behind the trees"], pattern)


def test_prompts_that_are_none(tiny):
    prompts: Any = ["the boy near the car", 3]
    with pytest.raises(UserError, match="a prompt is a text or a Prompt; got int 3"):
        by_pattern(tiny, prompts, NEAR)
    with pytest.raises(UserError, match="does not know 'xylophone'"):
        by_pattern(tiny, ["the boy near the xylophone"], NEAR)


@pytest.mark.parametrize("pattern", [{"subject": "boy"}, None, 3, [], [NEAR, None], "the boy"])
def test_what_is_no_pattern_with_a_name_is_refused(tiny, pattern):
    with pytest.raises(UserError, match="names no span; give patterns with named groups"):
        by_pattern(tiny, ["the boy near the car"], pattern)


@pytest.mark.parametrize("node", [SpanNode(MLP, 901, "subject"), SpanNode(MLP, None, "1")])
def test_names_of_nodes_parse_back(node):
    assert SpanNode.parse(str(node)) == node


@pytest.mark.parametrize(
    "text",
    ["mlp.3/latent.901", "mlp.3/latent@subject", "mlp.3/error@", "subject", "mlp.3/error@a b"],
)
def test_other_names_are_no_nodes_at_spans(text):
    with pytest.raises(UserError, match=re.escape(f"{text!r} is not a node at a span")):
        SpanNode.parse(text)


@pytest.mark.parametrize(
    ("names", "places", "says"),
    [
        (("a", "a"), {"a": (1,)}, "give different names"),
        (("a b",), {"a b": (1,)}, "without spaces"),
        (("a",), {"b": (1,)}, "prompt 0 has a span 'b'"),
        (("a", "b"), {"a": (1,), "b": (1,)}, "hold the positions [1, 1]"),
        (("a",), {"a": (0, 1)}, "hold the positions [0, 1]"),
        (("a",), {"a": (1, 3)}, "hold the positions [1, 3]"),
    ],
)
def test_spans_that_are_no_partition_are_refused(names, places, says):
    with pytest.raises(UserError, match=re.escape(says)):
        Spans(names, (places,))


def test_spans_and_positions_that_are_not_there():
    spans = Spans(("subject", "rest"), ({"subject": (1,)}, {"rest": (1, 2)}))
    assert spans.nodes(SpanNode(MLP, 1, "rest"), 0) == []
    with pytest.raises(UserError, match=r"no span 'subjects' for .*; there is subject"):
        spans.nodes(SpanNode(MLP, 1, "subjects"), 0)
    with pytest.raises(UserError, match="no position 3; prompt 1 has 0 to 2"):
        spans.span_of(1, 3)
    with pytest.raises(UserError, match="no position -1"):
        spans.span_of(1, -1)
