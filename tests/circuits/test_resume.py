"""A resumed pass gives what a whole pass gives, and computes only what differs from the clean."""

import random
from typing import Any

import pytest
import torch

from circuits import (
    Dictionary,
    ErrorNode,
    HookPoint,
    Intervention,
    LatentNode,
    Logits,
    Site,
    load_gemma,
    splice,
)
from circuits.formula import DOWNSTREAM
from circuits.hooks import has_hooks
from circuits.interventions import edits
from circuits.kept import keep
from circuits.resume import can_resume, resume, starts
from tests.random_gemma import (
    TEXT,
    VOCAB,
    chosen_dictionaries,
    random_dictionaries,
    save_random_gemma,
)

OUTPUTS = [
    Logits(),
    Logits(-1),
    Logits(3),
    Logits(-1, soft_capped=False),
    (Logits(2), (Logits(-2), Logits())),
]


@pytest.fixture(scope="module")
def doubles(gemma_folder):
    """In float64 no latent lies so near its threshold that rounding could switch it."""
    return load_gemma(str(gemma_folder), device="cpu", dtype=torch.float64)


def with_embedding(dtype: torch.dtype) -> dict:
    every = random_dictionaries(dtype=dtype)
    return {Site(0, "embed"): every[Site(2, "resid")], **every}


def choices_of_sites(dtype: torch.dtype) -> dict[str, dict]:
    every = random_dictionaries(dtype=dtype)
    return {
        "all": every,
        "embedding": with_embedding(dtype),
        "attn": chosen_dictionaries(["attn"], dtype=dtype),
        "attn and mlp": chosen_dictionaries(["attn", "mlp"], dtype=dtype),
        "transcoder": chosen_dictionaries(["transcoder", "resid"], dtype=dtype),
        "skip": chosen_dictionaries(["attn", "skip"], dtype=dtype),
        "one": {Site(1, "resid"): every[Site(1, "resid")]},
    }


CHOICES = list(choices_of_sites(torch.float32))


def random_rows(model, ids, *, n_rows: int, most: int, seed: int = 0):
    """Interventions on up to `most` nodes a row, off latents and errors at BOS among them."""
    generator = torch.Generator().manual_seed(seed)
    (reads,) = model.reads(ids).tolist()

    def below(n: int) -> int:
        return int(torch.randint(n, (), generator=generator))

    def node():
        site, pos = model.sites[below(len(model.sites))], below(ids.shape[1])
        summary = model.dictionaries.summary(site)
        if not reads[pos] or below(4) == 0:
            return ErrorNode(site, pos), torch.randn(summary.d_out, generator=generator)
        return LatentNode(site, below(summary.d_sae), pos), 3 * torch.rand((), generator=generator)

    def row():
        nodes = dict(node() for _ in range(below(most + 1)))
        return [Intervention(n, 0.5 * below(3), value) for n, value in nodes.items()]

    return [row() for _ in range(n_rows)]


def resumed(model, ids, rows, downstream, output):
    sites = {i.node.site for row in rows for i in row}
    kept = keep(model, ids, sites, downstream, output)
    return resume(kept, starts(kept, rows), output)


def whole(model, ids, rows, downstream, output):
    batch = ids.expand(len(rows), -1)
    changes = edits(model, batch, rows)
    return model.run(batch, changes, downstream=downstream, output=output)


@pytest.mark.parametrize("downstream", DOWNSTREAM)
@pytest.mark.parametrize("choice", CHOICES)
def test_resumed_passes_are_whole_passes(doubles, choice, downstream):
    model = splice(doubles, choices_of_sites(torch.float64)[choice])
    ids = model.tokens(TEXT)
    rows = random_rows(model, ids, n_rows=24, most=1) + random_rows(model, ids, n_rows=12, most=6)
    found = resumed(model, ids, rows, downstream, Logits())
    expected = whole(model, ids, rows, downstream, Logits())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)
    clean = model.run(ids, downstream=downstream)
    assert (expected - clean).abs().amax((1, 2)).median() > 1e-3  # not about nothing


@pytest.mark.parametrize("output", OUTPUTS, ids=str)
def test_any_logits_can_be_asked_for(model, output):
    ids = model.tokens(TEXT)
    rows = random_rows(model, ids, n_rows=9, most=3)
    torch.testing.assert_close(
        resumed(model, ids, rows, "recompute", output),
        whole(model, ids, rows, "recompute", output),
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize("downstream", DOWNSTREAM)
def test_other_families_resume_too(llama_bridge, downstream):
    model = splice(llama_bridge, random_dictionaries())
    ids = model.tokens(TEXT)
    rows = random_rows(model, ids, n_rows=20, most=2)
    torch.testing.assert_close(
        resumed(model, ids, rows, downstream, Logits()),
        whole(model, ids, rows, downstream, Logits()),
        rtol=1e-4,
        atol=1e-4,
    )


def test_a_bfloat16_model_resumes_within_its_rounding(gemma_folder):
    bridge = load_gemma(str(gemma_folder), device="cpu", dtype=torch.bfloat16)
    model = splice(bridge, random_dictionaries(dtype=torch.bfloat16))
    ids = model.tokens(TEXT)
    rows = random_rows(model, ids, n_rows=40, most=1)
    found, expected = (
        how(model, ids, rows, "recompute", Logits(-1)).float() for how in (resumed, whole)
    )
    clean = model.run(ids, output=Logits(-1)).float()
    moved = (expected - clean).norm()
    assert (found - expected).norm() < 0.05 * moved


def test_a_row_without_interventions_is_the_clean_pass(model):
    ids = model.tokens(TEXT)
    rows = [[], random_rows(model, ids, n_rows=1, most=1, seed=3)[0]]
    alone = resumed(model, ids, rows, "recompute", Logits())[:1]
    torch.testing.assert_close(alone, model.run(ids), rtol=1e-5, atol=1e-5)


def test_only_layers_and_positions_after_the_first_change_are_computed(model):
    """By construction: a resid latent needs the layers above, an attn latent its own layer too."""
    ids = model.tokens(TEXT)
    rows = [
        [Intervention(LatentNode(Site(0, "resid"), 5, 9), 0.0, 2.0)],
        [Intervention(LatentNode(Site(1, "attn"), 5, 8), 0.0, 2.0)],
        [Intervention(LatentNode(Site(1, "mlp"), 5, 8), 0.0, 2.0)],
        [Intervention(LatentNode(Site(2, "resid"), 5, 7), 0.0, 2.0)],
    ]
    kept = keep(model, ids, model.sites, "recompute", Logits(-1))
    begun = starts(kept, rows)
    seen = []
    handles = [
        block.register_forward_pre_hook(
            lambda module, args, layer=layer: seen.append((layer, *args[0].shape[:2]))
        )
        for layer, block in enumerate(model.bridge.blocks)
    ]
    resume(kept, begun, Logits(-1))
    for handle in handles:
        handle.remove()
    n_pos = ids.shape[1]
    assert seen == [(1, 2, n_pos - 7), (2, 3, n_pos - 7)]


def test_dictionaries_are_read_once_for_single_changes_however_many(model, monkeypatch):
    """So that a streamed dictionary is read from its file once, not once a batch."""
    ids = model.tokens(TEXT)
    rows = [row for row in random_rows(model, ids, n_rows=60, most=1) if row]
    kept = keep(model, ids, model.sites, "recompute", Logits(-1))
    asked = []
    store = type(model.dictionaries)
    plain = store.__getitem__
    monkeypatch.setattr(
        store, "__getitem__", lambda self, site: asked.append(site) or plain(self, site)
    )
    begun = starts(kept, rows)
    for row in begun:
        resume(kept, [row], Logits(-1))
    assert sorted(asked) == sorted({i.node.site for row in rows for i in row})


@pytest.mark.parametrize("seed", range(12))
def test_models_of_any_shape_resume(tmp_path, seed):
    """Layers, heads, groups, windows and soft-caps at random; EOS and padding within the prompt."""
    draw = random.Random(seed)
    n_heads, window = draw.choice([1, 2, 4]), draw.choice([1, 3, 64])
    save_random_gemma(
        tmp_path,
        seed=seed,
        spread=0.3,
        hidden_size=draw.choice([8, 20]),
        intermediate_size=24,
        num_hidden_layers=draw.choice([1, 2, 4]),
        num_attention_heads=n_heads,
        num_key_value_heads=draw.choice([n for n in (1, 2, 4) if n_heads % n == 0]),
        head_dim=draw.choice([4, 6]),
        sliding_window=window,
        query_pre_attn_scalar=draw.choice([4, 9]),
        attn_logit_softcapping=draw.choice([None, 2.0]),
        final_logit_softcapping=draw.choice([None, 3.0]),
        max_position_embeddings=20,
    )
    bridge = load_gemma(str(tmp_path), device="cpu", dtype=torch.float64)
    config: Any = bridge.original_model.config
    sites = [
        Site(layer, kind)
        for layer in range(config.num_hidden_layers)
        for kind in draw.sample(["attn", "mlp", "resid"], draw.choice([1, 2, 3]))
    ]
    widths = {"attn": n_heads * config.head_dim}
    model = splice(
        bridge, {s: dictionary(widths.get(s.kind, config.hidden_size), seed) for s in sorted(sites)}
    )
    n_pos = draw.choice([1, 2, 7, 19])
    ids = torch.randint(3, VOCAB, (1, n_pos))
    ids[0, 0] = 2
    if n_pos > 4:
        ids[0, 3] = 1
        ids[0, 4] = 0 if window > 1 else 1  # padding alone in its window sees nothing
    rows = random_rows(model, ids, n_rows=12, most=4, seed=seed)
    downstream = DOWNSTREAM[seed % 3]
    # norms compute in float32, whatever the model's dtype
    torch.testing.assert_close(
        resumed(model, ids, rows, downstream, Logits()),
        whole(model, ids, rows, downstream, Logits()),
        rtol=1e-5,
        atol=1e-5,
    )


def dictionary(width: int, seed: int, d_sae: int = 17) -> Dictionary:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int, scale: float) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64) * scale

    return Dictionary(
        W_enc=random(width, d_sae, scale=0.3),
        b_enc=random(d_sae, scale=0.1),
        threshold=torch.rand(d_sae, generator=generator, dtype=torch.float64) + 0.3,
        W_dec=random(d_sae, width, scale=0.2),
        b_dec=random(width, scale=0.1),
        name="random",
    )


def test_no_hook_is_left_behind_by_a_pass_that_fails(model, monkeypatch):
    ids = model.tokens(TEXT)
    rows = random_rows(model, ids, n_rows=5, most=4)
    kept = keep(model, ids, model.sites, "freeze", Logits(-1))
    begun, before = starts(kept, rows), model.run(ids)

    def hooks() -> int:  # TransformerLens has some of its own
        return sum(len(module._forward_pre_hooks) for module in model.bridge.modules())

    n_hooks = hooks()

    def fail(*_, **__):
        raise RuntimeError("a pass that fails")

    with monkeypatch.context() as patched:
        patched.setattr(type(model.dictionaries), "__getitem__", fail)
        with pytest.raises(RuntimeError, match="a pass that fails"):
            resume(kept, begun, Logits(-1))
        with pytest.raises(RuntimeError, match="a pass that fails"):
            keep(model, ids, model.sites, "drop", Logits(-1))
    assert not has_hooks(model.bridge)
    assert hooks() == n_hooks
    assert torch.equal(model.run(ids), before)


def test_what_cannot_be_resumed_is_known(model, bridge):
    assert can_resume(model, (Logits(-1), Logits()))
    with model.bridge.hooks(fwd_hooks=[("blocks.1.hook_resid_post", lambda x, hook: x / 2)]):
        assert not can_resume(model, Logits())
    assert not can_resume(model, (Logits(-1), HookPoint("blocks.1.hook_resid_post")))
    assert not can_resume(splice(bridge, chosen_dictionaries(["cross"])), Logits())
