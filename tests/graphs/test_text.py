import pytest

from graphs import prune
from graphs.colours import fill, ink, stroke
from graphs.text import caption, fit, label_lines, number, visible, width, wrap
from tests.graphs.synthetic import random_graph


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Mary", "Mary"),
        (" Mary", " Mary"),
        ("a\nb\tc\r\nd\re", "a↵b⇥c↵d↵e"),
        ("\x00\x1b", "��"),
        ("\ud800", "�"),
        ("\u2028", "�"),
        ("  ", "␣␣"),
        ("", ""),
        ("日本 é 🙂", "日本 é 🙂"),
    ],
)
def test_every_text_becomes_one_visible_line(text, shown):
    assert visible(text) == shown


def test_a_fitted_text_is_no_wider_than_the_limit():
    text = "the quick brown fox jumps over the lazy dog"
    for limit in (10, 30, 80, 150):
        assert width(fit(text, 8, limit), 8) <= limit
        assert all(width(line, 8) <= limit for line in wrap(text, 8, limit))
    assert fit(text, 8, 1000) == text
    assert fit(text, 8, 60).endswith("…")


def test_wrapping_keeps_every_word():
    text = "the quick brown fox jumps over the lazy dog"
    assert " ".join(wrap(text, 8, 80)) == text
    assert wrap("", 8, 80) == []


def test_a_label_breaks_at_its_bar():
    assert label_lines("Mary John | on gave", 8, 100) == ["Mary John", "on gave"]
    assert label_lines("one short", 8, 100) == ["one short"]
    lines = label_lines("a rather longer label without a bar", 8, 120)
    assert lines == ["a rather longer label", "without a bar"]
    assert label_lines(None, 8, 100) == []


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "+0.00"),
        (1.234, "+1.23"),
        (-0.0456, "\N{MINUS SIGN}0.046"),
        (123456, "+1.2e+05"),
        (-1e-7, "\N{MINUS SIGN}1.0e\N{MINUS SIGN}07"),
    ],
)
def test_numbers_carry_their_sign(value, text):
    assert number(value) == text


def test_colours_grow_with_the_effect_and_keep_text_readable():
    assert fill(0, 1) == "#ffffff"
    assert fill(0, 0) == "#ffffff"
    shades = [fill(x / 10, 1.0) for x in range(11)]
    assert shades == sorted(shades, reverse=True)
    assert ink("#ffffff") == "#111111"
    assert ink("#000000") == "#ffffff"
    assert stroke(1, 1)[:7] != stroke(-1, 1)[:7]


def test_a_caption_lists_every_prune_with_its_shares_as_they_were_given():
    graph = random_graph(0)
    once = prune(graph, keep_influence=0.996)
    twice = prune(once, keep_influence=1, keep_edges=0.07)
    before = f"pruned from {len(graph.digraph):,} nodes to"
    assert f"{before} 99.6% of the influence and 98% of the edge scores." in caption(once)[-1]
    shares = "99.6%, then 100% of the influence and 98%, then 7% of the edge scores."
    assert f"{before} {shares}" in caption(twice)[-1]
