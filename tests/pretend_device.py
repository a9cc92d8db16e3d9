"""A second device without a second machine: it computes on the CPU, but is not the CPU.

An operation on tensors of both devices is refused as CUDA refuses it. With this, a machine without
a GPU finds the tensors that would be in the wrong place on one. Numbers are the CPU's own.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretend"
aten = torch.ops.aten
INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)
MOVING = (aten._to_copy.default, aten.copy_.default, aten.lift_fresh.default)

_setup_privateuseone_for_python_backend(NAME)


class PretendTensor(Tensor):
    """A tensor on the device, around one on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> PretendTensor:
        made = Tensor._make_wrapper_subclass(  # pyright: ignore[reportAttributeAccessIssue]
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(NAME, 0),
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        return _run(func, args, kwargs or {})

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"{self.held!r} on {self.device}"

    def tolist(self) -> list:
        return self.held.tolist()

    def numpy(self, *, force: bool = False) -> NoReturn:
        raise TypeError(f"can't convert a tensor on {self.device} to numpy; copy it to the CPU")

    def __array__(self, dtype: Any = None) -> NoReturn:
        self.numpy()


class PretendDevice(TorchDispatchMode):
    """While this is entered, `device="pretend"` works; in this thread alone."""

    def __enter__(self) -> PretendDevice:
        self._lifted_before = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=) comes by here
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        torch._C._set_only_lift_cpu_tensors(self._lifted_before)
        super().__exit__(*error)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: tuple, kwargs: dict) -> Any:
    """`func` on the CPU's tensors, its results on the device that they would be on."""
    wanted = kwargs.get("device")
    from_here = any(isinstance(leaf, PretendTensor) for leaf in tree_leaves((args, kwargs)))
    to_here = from_here if wanted is None else torch.device(wanted).type == NAME
    if not (from_here or to_here):
        return func(*args, **kwargs)
    if func not in MOVING:
        _check(func, args, kwargs)
    held_args, held = tree_map_only(PretendTensor, lambda tensor: tensor.held, (args, kwargs))
    out = func(*held_args, **(held if wanted is None else {**held, "device": "cpu"}))
    if func is aten.copy_.default:
        return args[0]
    if "out" in kwargs:
        return kwargs["out"]
    if to_here:
        out = tree_map_only(Tensor, PretendTensor, out)
    return return_and_correct_aliasing(func, args, kwargs, out) if from_here and to_here else out


def _check(func: Any, args: tuple, kwargs: dict) -> None:
    """Refuse tensors of both devices, but for those of no dimension, and indices on the CPU."""
    indexes = func in INDEXING
    operands = tree_leaves(((args[0], *args[2:]), kwargs) if indexes else (args, kwargs))
    tensors = [leaf for leaf in operands if isinstance(leaf, Tensor)]
    here = [isinstance(tensor, PretendTensor) for tensor in tensors]
    elsewhere = any(tensor.ndim for tensor, at in zip(tensors, here, strict=True) if not at)
    if elsewhere and (any(here) or indexes):
        raise RuntimeError(f"{func}: tensors on {NAME} and on the CPU")
