"""A stand-in for a CUDA device: tensors that say they are on cuda:0, compute on the CPU, and refuse what CUDA refuses.

`with cuda_double():` makes torch believe in one GPU. What is created there (`device="cuda"`, `.cuda()`, `.to(...)`) is
a `CudaDouble`; whatever mixes it with a tensor of the CPU raises as CUDA would: operators, `cat`, indices, generators,
`numpy()`. A zero-dimensional tensor of the CPU may take part in elementwise operators, as there; indices may lie on the
CPU where the indexed tensor is on the GPU, not the other way round. Convolutions are computed with the 10 bits of
TensorFloat-32 unless that was turned off, as on a GPU since Ampere.

It shows no timing, no asynchronous error, no memory limit, and none of CUDA's own arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar
from unittest import mock

import torch
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CUDA = torch.device("cuda", 0)
aten = torch.ops.aten
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
CROSSING = {aten._to_copy.default, aten.copy_.default, aten._local_scalar_dense.default}
CONVOLUTIONS = {aten.convolution.default, aten.convolution_backward.default}


class WrongDevice(RuntimeError):
    """What CUDA refuses."""


class CudaDouble(torch.Tensor):
    """A tensor "on" the GPU; `host` has its values. For C++ it is one of the CPU, so that autograd runs."""

    host: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, host: torch.Tensor) -> CudaDouble:
        assert type(host) is torch.Tensor, type(host)
        made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, host.shape, host.stride(), host.storage_offset(), dtype=host.dtype, device="cpu"
        )
        made.host = host
        return made

    device = property(lambda self: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return self.numpy()

    def tolist(self) -> Any:
        return self.detach().cpu().tolist()

    def cpu(self) -> torch.Tensor:  # type: ignore[override]
        return _ToHost.apply(self)  # type: ignore[no-any-return, no-untyped-call]

    def cuda(self, *args: Any, **kwargs: Any) -> CudaDouble:  # type: ignore[override]
        return self

    def to(self, *args: Any, copy: bool = False, **kwargs: Any) -> torch.Tensor:  # type: ignore[override]
        device, dtype, _, _ = torch._C._nn._parse_to(*args, **kwargs)
        moved = self if device is None or device.type == "cuda" else self.cpu()
        if dtype is not None and dtype != moved.dtype:
            return torch.Tensor.to(moved, dtype)
        return moved.clone() if copy and moved is self else moved

    def new_tensor(self, data: Any, **kwargs: Any) -> torch.Tensor:  # type: ignore[override]
        return torch.tensor(data, **{"dtype": self.dtype, "device": CUDA} | kwargs)

    def __repr__(self, *args: Any, **kwargs: Any) -> str:  # type: ignore[override]
        return f"CudaDouble({self.host!r})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.detach().cpu().__reduce_ex__(protocol)


class _ToHost(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, double: CudaDouble) -> torch.Tensor:
        return double.host.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> CudaDouble:  # type: ignore[override]
        return CudaDouble(gradient)


class GeneratorDouble(torch.Generator):
    """Remembers whether it was made for the GPU."""

    on_cuda: ClassVar[dict[int, torch.Generator]] = {}  # by the address of its C++ part: operators see another object

    def __new__(cls, device: Any = "cpu") -> GeneratorDouble:
        made = super().__new__(cls)
        if torch.device(device).type == "cuda":
            cls.on_cuda[made._cdata] = made  # type: ignore[attr-defined]
        return made


def compute(func: Any, args: Any, kwargs: Any) -> Any:
    """One ATen operator on doubles: its devices checked, its result that of the CPU."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    doubles = [tensor for tensor in tensors if isinstance(tensor, CudaDouble)]
    device = kwargs.get("device")
    on_cuda = bool(doubles) if device is None or doubles else torch.device(device).type == "cuda"
    in_backward = torch._C._current_graph_task_id() != -1
    if not on_cuda and not (in_backward and not tensors):  # autograd fills in zeros on the GPU
        return func(*args, **kwargs)
    _check(func, args, tensors)
    _check_generator(kwargs.get("generator"))
    if torch.Tag.inplace_view in func.tags:
        with no_dispatch():  # C++ holds the double's own shape
            func(*args, **kwargs)
    known = {id(double.host): double for double in doubles}
    args, kwargs = tree_map(_host, (args, kwargs))
    if func in CONVOLUTIONS and torch.backends.cudnn.allow_tf32:
        args = tree_map(_ten_bits, args)
    result = func(*args, **kwargs)

    def double(one: Any) -> Any:
        return one if type(one) is not torch.Tensor else known[id(one)] if id(one) in known else CudaDouble(one)

    return tree_map(double, result)


def _host(leaf: Any) -> Any:
    if isinstance(leaf, CudaDouble):
        return leaf.host
    return torch.device("cpu") if isinstance(leaf, torch.device) else leaf


def _check(func: Any, args: Any, tensors: list[torch.Tensor]) -> None:
    """Raise what CUDA raises when these tensors are not where `func` needs them."""
    if func in CROSSING:
        return
    strangers = [tensor for tensor in tensors if not isinstance(tensor, CudaDouble)]
    if func in INDEXING:
        if not isinstance(args[0], CudaDouble):
            raise WrongDevice("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        indices = [index for index in args[1] if index is not None]
        strangers = [one for one in strangers if all(one is not index for index in indices) and one.dim()]
    elif torch.Tag.pointwise in func.tags:
        written = args[:1] if func._schema.is_mutable else ()
        strangers = [one for one in strangers if one.dim() or any(one is target for target in written)]
    if strangers and len(tensors) > 1:
        shapes = [tuple(one.shape) for one in strangers]
        raise WrongDevice(f"{func}: expected all tensors on the same device, but found cuda:0 and cpu {shapes}")


def _check_generator(generator: Any) -> None:
    if generator is not None and generator._cdata not in GeneratorDouble.on_cuda:
        raise WrongDevice("Expected a 'cuda' device type for generator but found 'cpu'")


def _ten_bits(leaf: Any) -> Any:
    """A float32 tensor rounded to the mantissa of TensorFloat-32."""
    if not isinstance(leaf, torch.Tensor) or leaf.dtype != torch.float32:
        return leaf
    return ((leaf.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


class _Everywhere(TorchDispatchMode):
    """Sees the operators that no double takes part in, too: those that create tensors or move them to the GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


def _moving(to: Any) -> Any:
    """Tensor.to, which in C++ would ask a real "cuda" which of its devices is the current one."""

    def named(one: Any) -> Any:
        return CUDA if isinstance(one, str | torch.device) and torch.device(one).type == "cuda" else one

    def moved(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return to(tensor, *map(named, args), **{key: named(one) for key, one in kwargs.items()})  # type: ignore[no-any-return]

    return moved


def _creating(tensor: Any) -> Any:
    """torch.tensor, which would ask for a real device in C++."""

    def created(data: Any, *, device: Any = None, requires_grad: bool = False, **options: Any) -> torch.Tensor:
        made = tensor(data, **options)
        return (made if device is None else made.to(device)).requires_grad_(requires_grad)

    return created


def _loading(load: Any) -> Any:
    """torch.load: everything goes where `map_location` says."""

    def loaded(file: Any, map_location: Any = None, **options: Any) -> Any:
        found = load(file, map_location="cpu", **options)
        if map_location is None or torch.device(map_location).type != "cuda":
            return found
        return tree_map(lambda one: one.to(CUDA) if isinstance(one, torch.Tensor) else one, found)

    return loaded


@contextmanager
def cuda_double() -> Iterator[None]:
    """Within, torch has one GPU, which is a double."""
    facts = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "get_device_name": lambda device=None: "CUDA double",
        "max_memory_allocated": lambda device=None: 1 << 20,
    }
    tf32 = torch.backends.cudnn.allow_tf32
    with ExitStack() as stack:
        for name, fact in facts.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, fact))
        stack.enter_context(mock.patch.object(torch, "Generator", GeneratorDouble))
        stack.enter_context(mock.patch.object(torch, "load", _loading(torch.load)))
        stack.enter_context(mock.patch.object(torch, "tensor", _creating(torch.tensor)))
        stack.enter_context(mock.patch.object(torch.Tensor, "to", _moving(torch.Tensor.to)))
        stack.enter_context(mock.patch.object(torch.Tensor, "cuda", lambda tensor: tensor.to(CUDA)))
        stack.callback(setattr, torch.backends.cudnn, "allow_tf32", tf32)
        torch.backends.cudnn.allow_tf32 = True
        stack.enter_context(_Everywhere())
        yield
