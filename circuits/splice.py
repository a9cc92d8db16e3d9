"""The model with dictionaries spliced in: the one place where hooks enter the forward pass.

A site reads `x_in` and writes `x_out`: the same tensor for an autoencoder, the normalised input of
the MLP and what it adds to the residual for a transcoder. With `acts = encode(x_in)` and
`error = x_out - decode(acts)` the site gives

    x_out + (decode(acts') - decode(acts)) + (error' - error)

which is `x_out` bit for bit while nothing is changed. Positions with BOS, EOS or padding bypass the
dictionary: no latents, and the whole of `x_out` is error. What a skip connection passes on,
`x_in @ W_skip`, belongs to `decode` and is no node: it follows what the pass makes of `x_in`.
Where cross-layer transcoders of lower layers write too, `decode` stands for the sum of all that is
written there, and `acts'` for the changed latents of every layer up to it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor

from circuits.active import Active, find_active, reconstruct, write_active, write_later
from circuits.catalogue import ranges
from circuits.cross_layer import Carried
from circuits.dictionaries import Dictionary
from circuits.errors import UserError
from circuits.families import Family, family_of
from circuits.freeze import LIVE, ForwardHook, Freeze, freeze_hooks
from circuits.interventions import Edit, Intervention, edits
from circuits.models import model_config
from circuits.outputs import (
    ALL_LOGITS,
    LAST_LOGITS,
    HookPoint,
    Logits,
    Output,
    Part,
    arrange,
    at_position,
    logit_positions,
    parts,
)
from circuits.prompts import Prompt
from circuits.sites import Site
from circuits.store import DictionaryStore
from circuits.trace import SiteTrace, Trace
from circuits.vocabulary import Prompts, Vocabulary

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

SiteHook = Callable[[Tensor, Tensor], Tensor]
"""From what a site reads, `[batch, pos, d_in]`, and what the model writes there,
`[batch, pos, d_out]`, to what the model goes on with in the place of the latter."""

Watch = Callable[[Tensor], None]
"""Is shown a tensor as the pass goes, and keeps what it wants of it; it changes nothing."""

DOWNSTREAM = ("recompute", "freeze", "drop")
"""What errors do when something upstream has changed: follow, keep their clean values, or go."""


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
            edits: By site; see `circuits.interventions.edits`.
            downstream: `recompute`: errors are what the changed pass makes them (the real model
                with the edit added). `freeze`: they keep their clean values. `drop`: they are
                removed, except where dictionaries do not read.
            clean_errors: With `freeze`, the errors `[batch or 1, pos, d_out]` of a clean pass, if
                the caller has them already; computed otherwise.
            output: What to give back: see `circuits.outputs`.

        Raises:
            UserError: an unknown convention, hook point or site, or a position that the prompt does
                not have.
        """
        if downstream not in DOWNSTREAM:
            raise UserError(f"downstream={downstream!r}; choose {', '.join(DOWNSTREAM)}")
        edits = edits or {}
        reads = self.reads(ids)
        sites = self.sites
        if downstream == "recompute":
            sites = self._involved(edits)  # elsewhere nothing changes
            kept = dict.fromkeys(sites, lambda error: error)
        elif downstream == "freeze":
            clean = clean_errors or self.errors(ids)
            kept = {site: clean[site].expand_as for site in sites}
        else:
            kept = dict.fromkeys(sites, lambda error: error * ~reads[..., None])
        decoded, changes = Carried(), Carried()
        hooks = {
            site: self._splice(site, reads, edits.get(site), kept[site], decoded, changes)
            for site in sites
        }
        return self.forward(ids, hooks, output=output)

    @overload
    def forward(
        self,
        ids: Tensor,
        hooks: Mapping[Site, SiteHook],
        *,
        freeze: Freeze = LIVE,
        embedding: SiteHook | None = None,
        watch: Mapping[str, Watch] | None = None,
        output: Part = ...,
    ) -> Tensor: ...
    @overload
    def forward(
        self,
        ids: Tensor,
        hooks: Mapping[Site, SiteHook],
        *,
        freeze: Freeze = LIVE,
        embedding: SiteHook | None = None,
        watch: Mapping[str, Watch] | None = None,
        output: Output,
    ) -> Any: ...
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
            table += self._site_hooks(Site(0, "embed"), embedding, freeze)
        seen: dict[Part, Tensor] = {}
        watched = [(name, _as_watch(look)) for name, look in (watch or {}).items()]
        for part in parts(output):
            watched += self._watch_hooks(part, seen, freeze)
        self._check_hook_points([name for name, _ in watched])
        table += watched
        for site, hook in hooks.items():
            table += self._site_hooks(site, hook, freeze)
        padded = _padding(ids, self.vocabulary)
        mask = {"attention_mask": (~padded).long()} if padded.any() else {}
        computed = logit_positions(output, ids.shape[1])
        with self._hooked(table):
            logits = self.bridge(ids, **mask, logits_to_keep=_to_keep(computed, ids))
        assert logits is not None
        for part in parts(output):
            if isinstance(part, Logits):
                every = seen.get(part)  # before the soft-cap
                every = logits if every is None else every
                seen[part] = at_position(every, part.pos, computed, ids.shape[1])
            elif part not in seen:
                raise UserError(f"this model's pass does not go through {part}; watch another")
        return arrange(output, seen)

    def trace(self, prompt: str | Prompt | Tensor) -> Trace:
        """Active latents and errors of one prompt, at every spliced site."""
        ids = self.tokens(prompt)
        if len(ids) != 1:
            raise UserError(f"a trace is of one prompt; got {len(ids)}")
        reads = self.reads(ids)
        embedding, inputs, outputs = self.activations(ids)
        sites = {}
        for site, active, reconstruction in self._read_each(inputs, reads):
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
            for site, _, reconstruction in self._read_each(inputs, reads)
        }

    def split(self, site: Site, x: Tensor, reads: Tensor) -> tuple[Tensor, Tensor]:
        """`acts [batch, pos, d_sae]` and what they decode to, `[batch, pos, d_out]`, at `reads`.

        Both in float32, or wider where the dictionary is; `x` is what the site reads. What latents
        of other layers write there (of cross-layer transcoders) is left out.
        """
        dictionary = self.dictionaries[site]
        active, reconstruction = _read(dictionary, x, reads)
        return _dense(active, dictionary.d_sae, x), reconstruction

    def writes_to(self, site: Site) -> tuple[Site, ...]:
        """Where the latents of `site` write: there, and a cross-layer transcoder's above it too."""
        n_later = self.dictionaries.summary(site).n_later
        return tuple(Site(site.layer + n, site.kind) for n in range(n_later + 1))

    def reads(self, ids: Tensor) -> Tensor:
        """Where dictionaries read, `[batch, pos]`: everywhere but BOS, EOS and padding."""
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

    @property
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

    def _read_each(
        self, inputs: Mapping[Site, Tensor], reads: Tensor
    ) -> Iterator[tuple[Site, Active, Tensor]]:
        """Site by site the active latents and what all latents decode to, `[batch, pos, d_out]`."""
        decoded = Carried()
        for site, x in inputs.items():
            dictionary = self.dictionaries[site]
            active, own = _read(dictionary, x, reads)
            yield site, active, decoded.up(site, own, _later(dictionary, active, own))

    def _involved(self, edited: Collection[Site]) -> tuple[Site, ...]:
        """The sites `edited`, those that write there and those that they write to."""
        reach = {site: set(self.writes_to(site)) for site in (*self.sites, *edited)}
        changed = set(edited).union(*(reach[site] for site in edited))
        return tuple(
            site for site in reach if site in changed or not reach[site].isdisjoint(edited)
        )

    def _splice(
        self,
        site: Site,
        reads: Tensor,
        edit: Edit | None,
        keep: Callable[[Tensor], Tensor],
        decoded: Carried,
        changes: Carried,
    ) -> SiteHook:
        """The module's formula at one site.

        Args:
            keep: Gives the error as it is without the edit.
            decoded: What latents of lower layers write, as they arrive.
            changes: What their edits change of it.
        """

        def hook(read: Tensor, written: Tensor) -> Tensor:
            dictionary = self.dictionaries[site]  # only now: few of them are in memory at a time
            active, own = _read(dictionary, read, reads)
            error = written - decoded.up(site, own, _later(dictionary, active, own))
            kept = keep(error)
            acts = _dense(active, dictionary.d_sae, read)
            new_acts, new_error = edit(acts, kept) if edit else (acts, kept)
            changed = Active.of((new_acts - acts).flatten(0, 1))
            own, _ = write_active(dictionary.W_dec, changed, read.shape[0] * read.shape[1])
            own = own.view_as(error)
            change = changes.up(site, own, _later(dictionary, changed, own))
            return written + (change + (new_error - error)).to(written.dtype)

        return hook

    def _site_hooks(self, site: Site, hook: SiteHook, freeze: Freeze) -> list[ForwardHook]:
        """`hook` as TransformerLens' hooks: where the site writes, and before it where it reads."""
        family = self.family
        found = family.read_norm(self.bridge.original_model, site)
        if found is None:
            return [(family.hook_point(site), _as_hook(lambda x: hook(x, x)))]
        name, norm = found
        held: list[Tensor] = []

        def read(x: Tensor, hook: Any) -> None:
            held.append(x)

        def write(written: Tensor) -> Tensor:
            return hook(self._enter(site, norm, held.pop(), freeze), written)

        return [(f"{name}.hook_in", read), (family.hook_point(site), _as_hook(write))]

    def _watch_hooks(
        self, part: Part, seen: dict[Part, Tensor], freeze: Freeze
    ) -> list[ForwardHook]:
        """The hooks that put into `seen` what `part` names; none for the logits themselves."""

        def keep(x: Tensor) -> None:
            seen[part] = x

        if isinstance(part, HookPoint):
            return [(part.name, _as_watch(keep))]
        if isinstance(part, Logits):
            return [] if part.soft_capped else [("unembed.hook_out", _as_watch(keep))]
        family, site = self.family, part.site
        if site.layer >= self.n_layers:
            raise UserError(f"no layer {site.layer}; {self.name} has layers 0-{self.n_layers - 1}")
        found = family.read_norm(self.bridge.original_model, site)
        if found is None:
            return [(family.hook_point(site), _as_watch(lambda x: keep(x.flatten(2))))]
        name, norm = found

        def enter(x: Tensor) -> None:
            keep(self._enter(site, norm, x, freeze))

        return [(f"{name}.hook_in", _as_watch(enter))]

    def _enter(self, site: Site, norm: Any, x: Tensor, freeze: Freeze) -> Tensor:
        """What a site that reads at `norm` makes of the norm's input `x`."""
        if site in self.dictionaries and self.dictionaries.summary(site).reads_residual:
            return x
        return self.family.normalized(norm, x, frozen=freeze.norms)

    def _check_hook_points(self, names: Sequence[str]) -> None:
        """Refuse hook points that the model does not have; a mistyped one is a user's mistake."""
        known = self.bridge.hook_dict if names else {}
        for name in names:
            if name not in known:
                close = get_close_matches(name, known, n=3) or ["blocks.0.hook_resid_post"]
                raise UserError(
                    f"no hook point {name!r} in {self.name}; did you mean {', '.join(close)}?"
                )

    @contextmanager
    def _hooked(self, table: list[tuple[str, Callable[..., Any]]]):
        known = self.bridge.hook_dict
        unknown = [name for name, _ in table if name not in known]
        assert not unknown, f"no hook points {unknown}"  # silent in TransformerLens 3.2
        with ExitStack() as stack:
            try:
                stack.enter_context(self.bridge.hooks(fwd_hooks=table))
            except ValueError as error:  # a hook point that TransformerLens passes only if asked to
                raise UserError(f"a hook point that cannot be watched: {error}") from error
            yield


def splice(
    bridge: TransformerBridge,
    dictionaries: Mapping[Site, Dictionary],
    *,
    name: str = "model",
    example_texts: Sequence[str] = (),
) -> SplicedModel:
    """Put `dictionaries` into the model; its output stays what it was, bit for bit.

    Raises:
        UserError: a site the model does not have, a dictionary of another width than the model's
            activation there, both an autoencoder and a transcoder for one MLP, or no dictionaries.
    """
    config = model_config(bridge)
    widths = family_of(bridge.original_model).widths(config)
    if not dictionaries:
        raise UserError("no dictionaries to splice in; choose at least one site")
    device = next(bridge.original_model.parameters()).device
    store = DictionaryStore.of(dictionaries, device)
    for site in store:
        if site.kind == "transcoder" and Site(site.layer, "mlp") in store:
            raise UserError(
                f"dictionaries at both {site} and mlp.{site.layer}, which write the same place; "
                "leave one of the two out"
            )
        dictionary = store.summary(site)
        if site.layer >= config.num_hidden_layers:
            raise UserError(
                f"no layer {site.layer} for the dictionary at {site}; "
                f"{name} has layers 0-{config.num_hidden_layers - 1}"
            )
        width = widths[site.kind]
        if (dictionary.d_in, dictionary.d_out) != (width, width):
            raise UserError(
                f"the dictionary at {site} reads {dictionary.d_in} and writes {dictionary.d_out} "
                f"numbers a position; {name} has {width} there"
            )
        _check_later(store, site)
    return SplicedModel(name, bridge, store, tuple(example_texts))


def _check_later(store: DictionaryStore, site: Site) -> None:
    """Refuse what only a transcoder can have elsewhere, and one that writes where there is none."""
    summary = store.summary(site)
    if site.kind != "transcoder" and (summary.n_later or summary.reads_residual):
        raise UserError(
            f"the dictionary at {site} has what only transcoders have (later decoders, or reading "
            f"the residual stream); splice it in at transcoder.{site.layer}"
        )
    for there in (Site(site.layer + n, site.kind) for n in range(1, summary.n_later + 1)):
        if there not in store:
            raise UserError(
                f"the cross-layer transcoder at {site} also writes to {there}, which has no "
                "dictionary; splice in those of all the layers that it writes to"
            )


def _dense(active: Active, d_sae: int, x: Tensor) -> Tensor:
    """Activations `[batch, pos, d_sae]` on `x [batch, pos, d_in]`."""
    acts = active.acts.new_zeros(x.shape[0] * x.shape[1], d_sae)
    acts[active.pos, active.latent] = active.acts
    return acts.view(*x.shape[:2], -1)


def _later(dictionary: Dictionary, active: Active, own: Tensor) -> list[Tensor]:
    """What latents write to each of the next layers, in the shape of `own [batch, pos, d_out]`."""
    n_pos = own.shape[0] * own.shape[1]
    return [written.view_as(own) for written in write_later(dictionary, active, n_pos)]


def _read(dictionary: Dictionary, x: Tensor, reads: Tensor) -> tuple[Active, Tensor]:
    """The active latents, row by row, and what they decode to, `[batch, pos, d_out]`."""
    flat, flat_reads = x.flatten(0, 1), reads.expand(x.shape[:2]).flatten()
    active = find_active(dictionary, flat, flat_reads)
    reconstruction = reconstruct(dictionary, flat, flat_reads, active)
    return active, reconstruction.view(*x.shape[:2], -1)


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


def _as_watch(look: Watch) -> Callable[..., None]:
    """`look` as TransformerLens calls it; what it returns is not put into the pass."""

    def wrapped(x: Tensor, hook: Any) -> None:
        look(x)

    return wrapped


def _as_hook(hook: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """`hook` as TransformerLens calls it; the heads of `attn` are joined and split again."""

    def wrapped(x: Tensor, hook_point: Any = None, **_: Any) -> Tensor:
        return hook(x.flatten(2)).view_as(x)  # returned, not only read: `hook_z` is a side view

    return wrapped
