"""Gemma 2 with sparse dictionaries spliced into every layer and sublayer."""

from circuits.dictionaries import Dictionary
from circuits.errors import UserError
from circuits.interventions import Intervention, edits, mean, scale, set_to, zero
from circuits.loading.gemma_scope import gemma_scope
from circuits.loading.load import load
from circuits.loading.models import load_gemma
from circuits.model import SplicedModel
from circuits.nodes import BiasNode, ErrorNode, LatentNode, LogitNode, Node, TokenNode, parse_node
from circuits.outputs import HookPoint, Logits, Output, SiteInput
from circuits.prompts import Prompt
from circuits.reference import (
    Reference,
    corrupted_reference,
    mean_reference,
    mixed_reference,
    zero_reference,
)
from circuits.sites import KINDS, Site
from circuits.splice import splice
from circuits.trace import SiteTrace, Trace

__all__ = [
    "KINDS",
    "BiasNode",
    "Dictionary",
    "ErrorNode",
    "HookPoint",
    "Intervention",
    "LatentNode",
    "LogitNode",
    "Logits",
    "Node",
    "Output",
    "Prompt",
    "Reference",
    "Site",
    "SiteInput",
    "SiteTrace",
    "SplicedModel",
    "TokenNode",
    "Trace",
    "UserError",
    "corrupted_reference",
    "edits",
    "gemma_scope",
    "load",
    "load_gemma",
    "mean",
    "mean_reference",
    "mixed_reference",
    "parse_node",
    "scale",
    "set_to",
    "splice",
    "zero",
    "zero_reference",
]
