"""A first label for every latent: the words it promotes, and the words it fires on.

1. *Promoted words.* The latent's direction in the residual stream, read through the unembedding:

       logits = (g_final * direction) @ W_U
       direction = W_dec[latent]                           at resid, mlp and transcoder
       direction = g_post * (W_O @ W_dec[latent])          at attn

   with `g` the gains of the final norm and, in families that have one, of the norm after attention
   (in Gemma 1 plus the stored weight). This is a linear approximation: it
   knows the straight path to the output alone, leaves the norms' scales out (they do not change
   the order of the words), and is least to be trusted in early layers.
2. *Words it fires on.* Tokens by the latent's mean activation over all their occurrences in a set
   of texts.
3. *Label*: `Mary John he | on gave to handed`.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import networkx as nx
import torch
from torch import Tensor

from attribution.fingerprint import check_weights
from circuits import LatentNode, Site, SplicedModel
from circuits.families import family_of
from circuits.interventions import check_latent
from graphs.graph import AttributionGraph, plural
from graphs.text import visible

N_WORDS = 3
BATCH = 16


def label_latents(
    model: SplicedModel, graph: AttributionGraph, texts: Iterable[str] | None = None
) -> AttributionGraph:
    """A copy of `graph` in which every latent has a label; labels it had are replaced.

    Args:
        model: The model that the graph was traced on.
        graph: Left as it is.
        texts: What to look for firing words in; `model.example_texts` by default, or the graph's
            own prompt if the model has none.

    Raises:
        UserError: a latent of the graph that the model's dictionaries do not have, a graph of other
            weights, or a text that the model cannot read.
    """
    check_weights(model, graph.provenance, "the graph")
    own_prompt = graph.provenance.get("prompt", {}).get("text")
    chosen = _listed(model.example_texts or (own_prompt,) if texts is None else texts)
    labels = labels_of(model, graph.latents(), chosen)
    digraph = nx.DiGraph(graph.digraph)
    for node, label in labels.items():
        digraph.nodes[node]["label"] = label
    provenance = graph.provenance | {
        "labels": {
            "promoted": "direction through the final norm's gain and the unembedding (linear)",
            "fires on": f"tokens by mean activation over {plural(len(chosen), 'text')}",
        }
    }
    return dataclasses.replace(graph, digraph=nx.freeze(digraph), provenance=provenance)


def labels_of(
    model: SplicedModel, latents: Iterable[LatentNode], texts: Iterable[str] | None = None
) -> dict[LatentNode, str]:
    """A label for each of `latents`, from `texts` (by default `model.example_texts`).

    Raises:
        UserError: as `label_latents`.
    """
    latents = list(latents)
    by_site = _latents_by_site(model, latents)
    chosen = _listed(model.example_texts if texts is None else texts)
    means = mean_activations(model, by_site, chosen)
    labels: dict[tuple[Site, int], str] = {}
    for site, indices in by_site.items():
        promoted = promoted_logits(model, site, indices)
        for row, latent in enumerate(indices):
            labels[site, latent] = _label(model, promoted[row], means[site][row])
    return {node: labels[node.site, node.latent] for node in latents}


@torch.no_grad()
def promoted_logits(model: SplicedModel, site: Site, latents: Sequence[int]) -> Tensor:
    """How much one unit of each latent adds to each token's logit, `[latents, vocab]`, float32.

    The linear approximation of the module's docstring; up to a positive factor per latent.
    """
    huggingface: Any = model.bridge.original_model
    decoders = model.dictionaries[site].decoders  # all that it writes is added to the residual
    direction = torch.stack([W_dec[list(latents)].float() for W_dec in decoders]).sum(0)
    family = family_of(huggingface)
    gain = family.gain(family.norms_of(huggingface)["ln_final"])
    direction = family.to_residual(huggingface, site, direction) * gain
    return direction @ huggingface.get_output_embeddings().weight.float().T


@torch.no_grad()
def mean_activations(
    model: SplicedModel, latents: Mapping[Site, Sequence[int]], texts: Sequence[str]
) -> dict[Site, Tensor]:
    """Each latent's mean activation on each token of the vocabulary, by site `[latents, vocab]`.

    Over all occurrences of the token in `texts`; 0 for tokens that do not occur.
    """
    encoders = {site: _encoder(model, site, indices) for site, indices in latents.items()}
    sums = {
        site: torch.zeros(model.d_vocab, len(indices), device=model.device)
        for site, indices in latents.items()
    }
    counts = torch.zeros(model.d_vocab, device=model.device)
    for start in range(0, len(texts), BATCH):
        ids = model.tokens(texts[start : start + BATCH])
        reads = model.reads(ids)
        counts += torch.bincount(ids[reads], minlength=model.d_vocab)
        activations = model.activations(ids)[1]
        for site, encode in encoders.items():
            acts = encode(activations[site][reads]).float()
            sums[site].index_add_(0, ids[reads], acts)
    return {site: (total / counts.clamp(min=1)[:, None]).T for site, total in sums.items()}


def _listed(texts: Iterable[str]) -> list[str]:
    """Those that are not empty; a single text is one."""
    return [text for text in ([texts] if isinstance(texts, str) else texts) if text]


def _latents_by_site(model: SplicedModel, latents: Iterable[LatentNode]) -> dict[Site, list[int]]:
    by_site: dict[Site, set[int]] = {}
    for node in latents:
        check_latent(model, node.site, node.latent, node)
        by_site.setdefault(node.site, set()).add(node.latent)
    return {site: sorted(indices) for site, indices in by_site.items()}


def _encoder(model: SplicedModel, site: Site, latents: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """From what the site reads to the activations of a few latents; no others are computed."""
    dictionary, indices = model.dictionaries[site], list(latents)
    if dictionary.k is not None:  # which are the k largest depends on all of them
        return lambda x: model.dictionaries[site].encode(x)[..., indices]
    part = dataclasses.replace(
        dictionary,
        W_enc=dictionary.W_enc[:, indices],
        b_enc=dictionary.b_enc[indices],
        threshold=dictionary.threshold[indices],
        W_dec=dictionary.W_dec[indices],
        W_later=None,  # it only encodes
    )
    return part.encode


def _label(model: SplicedModel, promoted: Tensor, fires_on: Tensor) -> str:
    parts = [" ".join(_top_words(model, promoted))]
    if words := _top_words(model, fires_on):
        parts.append(f"on {' '.join(words)}")
    return " | ".join(part for part in parts if part)


def _top_words(model: SplicedModel, scores: Tensor) -> list[str]:
    """The `N_WORDS` tokens of highest positive score, without special ones and repetitions."""
    scores = scores.clone()
    scores[model.tokenizer.all_special_ids] = 0
    words: list[str] = []
    for value, token in zip(*scores.topk(min(len(scores), 4 * N_WORDS)), strict=True):
        word = visible(model.tokenizer.decode([int(token)]).strip())
        if value > 0 and word and word not in words:
            words.append(word)
    return words[:N_WORDS]
