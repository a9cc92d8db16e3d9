"""The model with dictionaries spliced in: what passes through it can be asked for."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor

from circuits.catalogue import ranges
from circuits.errors import UserError
from circuits.families import Family, family_of
from circuits.formula import Formula, check_downstream, error_rule, read_active, read_each
from circuits.freeze import LIVE, Freeze, freeze_hooks
from circuits.hooks import (
    SiteHook,
    Watch,
    as_contiguous,
    as_watch,
    check_hook_points,
    hooked,
    output_hooks,
    site_hooks,
)
from circuits.interventions import Edit, Intervention, edits
from circuits.loading.models import model_config
from circuits.loading.store import DictionaryStore
from circuits.outputs import (
    ALL_LOGITS,
    LAST_LOGITS,
    Logits,
    Output,
    Part,
    arrange,
    logit_positions,
    parts,
)
from circuits.prompts import Prompt
from circuits.sites import Site
from circuits.trace import SiteTrace, Trace
from circuits.vocabulary import Prompts, Vocabulary

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True, eq=False, repr=False)
class SplicedModel:
    """A model with a dictionary at each of `sites`. Made by `load` or `splice`.

    Attributes:
        name: For messages and records.
        bridge: TransformerLens' bridge; `bridge.original_model` is the Hugging Face model.
        dictionaries: By site, in the order of the forward pass; `dictionaries[Site(3, "mlp")]` is
            a `Dictionary`, read from its file if need be.
        example_texts: Texts to say what latents fire on; may be empty.
        dictionaries_from: What to give to `load` as `dictionaries` to have the same ones, if it
            was not left out.
    """

    name: str
    bridge: TransformerBridge
    dictionaries: DictionaryStore
    example_texts: tuple[str, ...] = ()
    dictionaries_from: str | None = None

    def __repr__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"SplicedModel({self.name!r}, {self.describe_sites()}, {dtype}, {self.device})"

    def __call__(
        self,
        prompt: Prompts,
        interventions: Sequence[Intervention] = (),
        downstream: str = "recompute",
    ) -> Tensor:
        """Logits `[batch, pos, vocab]`, after the final soft-cap, without gradients.

        Args:
            prompt: A text, a `Prompt`, several of them, or token ids.
            interventions: Carried out in every row.
            downstream: What errors do: see `run`.
        """
        ids = self.tokens(prompt)
        return self.run(ids, edits(self, ids, [interventions] * len(ids)), downstream=downstream)

    @overload
    def run(
        self,
        ids: Tensor,
        edits: Mapping[Site, Edit] | None = None,
        *,
        downstream: str = "recompute",
        clean_errors: Mapping[Site, Tensor] | None = None,
        output: Part = ...,
    ) -> Tensor: ...
    @overload
    def run(
        self,
        ids: Tensor,
        edits: Mapping[Site, Edit] | None = None,
        *,
        downstream: str = "recompute",
        clean_errors: Mapping[Site, Tensor] | None = None,
        output: Output,
    ) -> Any: ...
    @torch.no_grad()
    def run(
        self,
        ids: Tensor,
        edits: Mapping[Site, Edit] | None = None,
        *,
        downstream: str = "recompute",
        clean_errors: Mapping[Site, Tensor] | None = None,
        output: Output = ALL_LOGITS,
    ) -> Any:
        """Logits `[batch, pos, vocab]`, or another output, with each site's nodes edited.

        Args:
            ids: `[batch, pos]`.
            edits: By site, as `circuits.edits` makes them of interventions.
            downstream: `recompute`: errors are what the changed pass makes them (the real model
                with the edit added). `freeze`: they keep their clean values. `drop`: they are
                removed, except where dictionaries do not read.
            clean_errors: With `freeze`, the errors `[batch or 1, pos, d_out]` of a clean pass, if
                the caller has them already; computed otherwise.
            output: What to give back: see `circuits.outputs`.

        Raises:
            UserError: an unknown convention, hook point or site, a position that the prompt does
                not have, a text in the place of token ids, or interventions in the place of edits.
        """
        check_downstream(downstream)
        edits = {} if edits is None else edits
        if not isinstance(edits, Mapping) or not all(map(callable, edits.values())):
            raise UserError(
                "run takes edits by site; make them of interventions: "
                "edits(model, ids, [[zero(a), zero(b)]]), or call model(text, [zero(a), zero(b)])"
            )
        reads = self.reads(ids)
        sites = self.sites
        if downstream == "recompute":
            sites = self._involved(edits)  # elsewhere nothing changes
        clean = clean_errors or (self.errors(ids) if downstream == "freeze" else {})
        formula = Formula(self.dictionaries)
        hooks = {
            site: formula.at(
                site, reads, error_rule(downstream, reads, clean.get(site)), edits.get(site)
            )
            for site in sites
        }
        return self.forward(ids, hooks, output=output)

    def forward(
        self,
        ids: Tensor,
        hooks: Mapping[Site, SiteHook],
        *,
        freeze: Freeze = LIVE,
        embedding: SiteHook | None = None,
        watch: Mapping[str, Watch] | None = None,
        output: Output = ALL_LOGITS,
    ) -> Any:
        """Logits of one pass with `hooks` at sites; gradients flow wherever hooks let them.

        Args:
            ids: `[batch, pos]`.
            hooks: What each site's output `[batch, pos, d_out]` is replaced by.
            freeze: What gradients treat as constant.
            embedding: A site hook for the scaled embedding `[batch, pos, d_model]`.
            watch: Hook points of TransformerLens whose tensors are shown to a function, with
                their gradients: after `freeze` and `embedding` have had their say there, and
                before `hooks`.
            output: What to give back instead of the logits of every position: see
                `circuits.outputs`. Where it holds no logits, only those of the last position are
                computed.

        Raises:
            UserError: a hook point or site that the model does not have or does not pass, or a
                position that the prompt does not have.
        """
        # first: the site `mlp` is the output of a norm, and its hook must see that norm frozen
        table = freeze_hooks(self.bridge, freeze)
        if embedding is not None:  # then this: the site `embed` reads what it gives
            table += site_hooks(self, Site(0, "embed"), embedding, freeze)
        seen: dict[Part, Tensor] = {}
        watched = [(name, as_watch(look)) for name, look in (watch or {}).items()]
        for part in parts(output):
            watched += output_hooks(self, part, seen, freeze)
        check_hook_points(self, [name for name, _ in watched])
        table += watched
        for site, hook in hooks.items():
            table += site_hooks(self, site, hook, freeze)
        table.append(("unembed.hook_in", as_contiguous))
        padded = _padding(ids, self.vocabulary)
        mask = {"attention_mask": (~padded).long()} if padded.any() else {}
        computed = logit_positions(output, ids.shape[1])
        with hooked(self.bridge, table):
            logits = self.bridge(ids, **mask, logits_to_keep=_to_keep(computed, ids))
        assert logits is not None
        for part in parts(output):
            if isinstance(part, Logits):
                seen.setdefault(part, logits)  # unless those before the soft-cap are wanted
            elif part not in seen:
                raise UserError(f"this model's pass does not go through {part}; watch another")
        return arrange(output, seen, computed, ids.shape[1])

    def trace(self, prompt: str | Prompt | Tensor) -> Trace:
        """Active latents and errors of one prompt, at every spliced site."""
        ids = self.tokens(prompt)
        if len(ids) != 1:
            raise UserError(f"a trace is of one prompt; got {len(ids)}")
        reads = self.reads(ids)
        embedding, inputs, outputs = self.activations(ids)
        sites = {}
        for site, active, reconstruction in read_each(self.dictionaries, inputs, reads):
            error = (outputs[site] - reconstruction)[0]
            d_sae = self.dictionaries.summary(site).d_sae
            sites[site] = SiteTrace(active.pos, active.latent, active.acts, error, d_sae)
        return Trace(ids[0], embedding[0], sites)

    @torch.no_grad()
    def activations(self, ids: Tensor) -> tuple[Tensor, dict[Site, Tensor], dict[Site, Tensor]]:
        """The scaled embedding, and what each spliced site reads and what it writes, untouched.

        All `[batch, pos, d]`. A transcoder writes another tensor than it reads.
        """
        kept: dict[Site | None, tuple[Tensor, Tensor]] = {}

        def keep(site: Site | None) -> SiteHook:
            def hook(read: Tensor, written: Tensor) -> Tensor:
                kept[site] = read, written
                return written

            return hook

        hooks = {site: keep(site) for site in self.sites}
        self.forward(ids, hooks, embedding=keep(None), output=LAST_LOGITS)
        embedding, _ = kept.pop(None)
        inputs, outputs = ({site: kept[site][i] for site in self.sites} for i in (0, 1))
        return embedding, inputs, outputs

    def errors(self, ids: Tensor) -> dict[Site, Tensor]:
        """The error `[batch, pos, d_out]` at each spliced site of a clean pass."""
        reads = self.reads(ids)
        _, inputs, outputs = self.activations(ids)
        return {
            site: outputs[site] - reconstruction
            for site, _, reconstruction in read_each(self.dictionaries, inputs, reads)
        }

    def split(self, site: Site, x: Tensor, reads: Tensor) -> tuple[Tensor, Tensor]:
        """`acts [batch, pos, d_sae]` and what they decode to, `[batch, pos, d_out]`, at `reads`.

        Both in float32, or wider where the dictionary is; `x` is what the site reads. What latents
        of other layers write there (of cross-layer transcoders) is left out.
        """
        dictionary = self.dictionaries[site]
        active, reconstruction = read_active(dictionary, x, reads)
        return active.dense(*x.shape[:2], dictionary.d_sae), reconstruction

    def writes_to(self, site: Site) -> tuple[Site, ...]:
        """Where the latents of `site` write: there, and a cross-layer transcoder's above it too."""
        n_later = self.dictionaries.summary(site).n_later
        return tuple(Site(site.layer + n, site.kind) for n in range(n_later + 1))

    def reads(self, ids: Tensor) -> Tensor:
        """Where dictionaries read, `[batch, pos]`: everywhere but BOS, EOS and padding.

        Raises:
            UserError: something else than a tensor.
        """
        if not isinstance(ids, Tensor):
            raise UserError(
                f"token ids are a tensor; got {type(ids).__name__}; give model.tokens(text)"
            )
        return self.vocabulary.is_text(ids)

    def tokens(self, prompt: Prompts) -> Tensor:
        """Token ids `[batch, pos]`, BOS first, padded on the right.

        Raises:
            UserError: an empty prompt, one longer than the context, a word the tokenizer does not
                know, or a tensor of another shape.
        """
        return self.vocabulary.ids(prompt).to(self.device)

    def words(self, ids: Tensor) -> list[str]:
        """Each token of `ids [pos]` as text."""
        return self.vocabulary.words(ids.tolist())

    def token_id(self, text: str) -> int:
        """The one token that `text` is.

        Raises:
            UserError: `text` is no token, or several.
        """
        return self.vocabulary.token_id(text)

    def describe_sites(self) -> str:
        """`layers 0-3 at attn, mlp, resid`, for messages."""
        layers = {site.layer for site in self.sites}
        kinds = list(dict.fromkeys(site.kind for site in self.sites))
        return f"layer{'s' * (len(layers) > 1)} {ranges(layers)} at {', '.join(kinds)}"

    @property
    def sites(self) -> tuple[Site, ...]:
        return tuple(self.dictionaries)

    @property
    def tokenizer(self) -> Any:
        return self.bridge.tokenizer

    @property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary(self.tokenizer, self.name, self.n_ctx, self.d_vocab)

    @property
    def config(self) -> Any:
        """The Hugging Face configuration."""
        return model_config(self.bridge)

    @cached_property
    def family(self) -> Family:
        """Where this family of models has its sites."""
        return family_of(self.bridge.original_model)

    @property
    def device(self) -> torch.device:
        return next(self.bridge.original_model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.bridge.original_model.parameters()).dtype

    @property
    def n_layers(self) -> int:
        return self.config.num_hidden_layers

    @property
    def n_ctx(self) -> int:
        return self.config.max_position_embeddings

    @property
    def d_vocab(self) -> int:
        return self.config.vocab_size

    def _involved(self, edited: Collection[Site]) -> tuple[Site, ...]:
        """The sites `edited`, those that write there and those that they write to."""
        reach = {site: set(self.writes_to(site)) for site in (*self.sites, *edited)}
        changed = set(edited).union(*(reach[site] for site in edited))
        return tuple(
            site for site in reach if site in changed or not reach[site].isdisjoint(edited)
        )


def _padding(ids: Tensor, vocabulary: Vocabulary) -> Tensor:
    """Which of `ids [batch, pos]` are padding.

    Where EOS serves as padding, on the left alone: further right EOS is a token like others, and
    padding there is seen by no token before it.
    """
    padded = ids == vocabulary.pad_id
    if vocabulary.pad_id == vocabulary.tokenizer.eos_token_id:
        return padded.cumprod(1).bool()
    return padded


def _to_keep(computed: list[int], ids: Tensor) -> int | Tensor:
    """Hugging Face's `logits_to_keep`: how many of the last positions (0 for all), or which."""
    n_pos = ids.shape[1]
    if len(computed) == n_pos:
        return 0
    return 1 if computed == [n_pos - 1] else torch.tensor(computed, device=ids.device)
