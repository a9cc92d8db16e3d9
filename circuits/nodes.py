"""The nodes of a feature graph; each has a name that parses back, such as `mlp.3/latent.901@7`."""

import re
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from circuits.errors import UserError
from circuits.sites import Site

T = TypeVar("T")


def hashed_once(cls: type[T]) -> type[T]:
    """The frozen dataclass `cls`, each instance of which computes its hash once.

    Nodes are the keys of large graphs, where networkx hashes both ends of an edge several times.
    """
    compute = cls.__hash__

    def remembered(self: Any) -> int:
        try:
            return self._hash
        except AttributeError:
            object.__setattr__(self, "_hash", compute(self))  # past the freeze: no field changes
            return self._hash

    def rebuilt(self: Any) -> tuple[type[T], tuple]:
        # copied and pickled without its hash, which in another process is another
        return cls, tuple(getattr(self, field.name) for field in fields(self))

    cls.__hash__, cls.__reduce__ = remembered, rebuilt
    return cls


@hashed_once
@dataclass(frozen=True)
class LatentNode:
    """One latent of the dictionary at `site`, at one position (0 is BOS)."""

    site: Site
    latent: int
    pos: int

    def __str__(self) -> str:
        return f"{self.site}/latent.{self.latent}@{self.pos}"


@hashed_once
@dataclass(frozen=True)
class ErrorNode:
    """What `site` writes at one position less `decode(encode(x))` of what it reads there."""

    site: Site
    pos: int

    def __str__(self) -> str:
        return f"{self.site}/error@{self.pos}"


@hashed_once
@dataclass(frozen=True)
class BiasNode:
    """The constants of the dictionary at `site`, so that sums close.

    To latents downstream it is `b_dec` at every position where the dictionary reads; to its own
    latents it is `b_enc`.
    """

    site: Site

    def __str__(self) -> str:
        return f"{self.site}/bias"


@hashed_once
@dataclass(frozen=True)
class TokenNode:
    """The scaled embedding at one position."""

    pos: int

    def __str__(self) -> str:
        return f"token@{self.pos}"


@hashed_once
@dataclass(frozen=True)
class LogitNode:
    """The output that the graph explains: one token's logit, or a metric."""

    name: str

    def __str__(self) -> str:
        return f"logit/{self.name}"


Node = LatentNode | ErrorNode | BiasNode | TokenNode | LogitNode

NODE_WORDS: dict[type[Node], str] = {
    TokenNode: "token",
    LatentNode: "latent",
    ErrorNode: "error",
    BiasNode: "bias",
    LogitNode: "logit",
}
"""What each type of node is called in tables and pictures."""


def parse_node(text: str) -> Node:
    """The node whose `str` is `text`.

    Raises:
        UserError: `text` is no node's name.
    """
    if text.startswith("logit/"):
        return LogitNode(text.removeprefix("logit/"))
    if match := re.fullmatch(r"token@(\d+)", text):
        return TokenNode(int(match[1]))
    if match := re.fullmatch(r"(\w+\.\d+)/latent\.(\d+)@(\d+)", text):
        return LatentNode(Site.parse(match[1]), int(match[2]), int(match[3]))
    if match := re.fullmatch(r"(\w+\.\d+)/error@(\d+)", text):
        return ErrorNode(Site.parse(match[1]), int(match[2]))
    if match := re.fullmatch(r"(\w+\.\d+)/bias", text):
        return BiasNode(Site.parse(match[1]))
    raise UserError(
        f"{text!r} is not a node; names look like mlp.3/latent.901@7, mlp.3/error@7, "
        "mlp.3/bias, token@4 or logit/Mary - John"
    )
