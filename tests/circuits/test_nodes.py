"""Sites are in the order of the forward pass, and every node's name parses back."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuits import (
    KINDS,
    BiasNode,
    ErrorNode,
    LatentNode,
    LogitNode,
    Site,
    TokenNode,
    UserError,
    parse_node,
)

sites = st.builds(Site, st.integers(0, 99), st.sampled_from(KINDS))
count = st.integers(0, 2**20)
nodes = st.one_of(
    st.builds(LatentNode, sites, count, count),
    st.builds(ErrorNode, sites, count),
    st.builds(BiasNode, sites),
    st.builds(TokenNode, count),
    st.builds(LogitNode, st.text()),
)


@given(nodes)
def test_a_name_parses_back(node):
    assert parse_node(str(node)) == node


@given(st.lists(nodes, unique=True))
def test_names_are_unique(some):
    assert len({str(node) for node in some}) == len(some)


def test_the_name_of_the_design():
    assert str(LatentNode(Site(3, "mlp"), 901, 7)) == "mlp.3/latent.901@7"


def test_sites_sort_as_the_model_passes_them():
    passed = [Site(layer, kind) for layer in range(3) for kind in ("attn", "mlp", "resid")]
    assert sorted(set(passed)) == passed


@pytest.mark.parametrize("text", ["", "mlp.3", "mlp.3/latent@7", "token@-1", "ffn.3/error@1"])
def test_other_text_is_refused(text):
    with pytest.raises(UserError):
        parse_node(text)


@given(nodes, nodes)
def test_a_node_is_the_same_key_before_and_after_its_hash_is_remembered(node, other):
    fresh = parse_node(str(node))
    assert hash(node) == hash(node) == hash(fresh)
    assert node == fresh
    assert (node == other) == (str(node) == str(other))
    copied = copy.deepcopy(node)
    assert copied == node
    assert vars(copied) == vars(parse_node(str(node)))  # the hash is not copied
