"""A simulated device: its tensors claim to be on `cuda:0`, and have their values on the CPU.

Within `absent_device()`, `.to("cuda")` and `device="cuda"` make such tensors. What CUDA refuses is refused, naming the
operation: tensors of host and device in one, unless those of the host are single numbers, which a kernel takes as
arguments. What makes the host wait is noted: whatever is read from the device, and whatever is copied to it from the
host's memory. Results are the CPU's, bit for bit, so that a picture can be compared with one made without the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

DEVICE = torch.device("cuda:0")
aten: Any = torch.ops.aten
COPIED = "copied to the device by Tensor.to"
OF_NUMBERS = (torch.tensor, torch.as_tensor, torch.asarray)
INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)


class DeviceTensor(Tensor):
    """A tensor of the device: to Python, that is; PyTorch's C++ takes it for one of the CPU."""

    on_host: Tensor  # its values
    watch: ClassVar[Watch | None] = None  # what notes the operations
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __new__(cls, values: Tensor) -> DeviceTensor:
        tensor: Any = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, values.shape, values.stride(), values.storage_offset(), dtype=values.dtype, device=values.device
        )
        tensor.on_host = values
        return tensor

    device = property(lambda self: DEVICE)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"DeviceTensor({self.on_host!r})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        watch = cls.watch
        if watch is None:
            raise RuntimeError(f"{function}: the device is there within absent_device() only")
        there: dict[int, DeviceTensor] = {}
        host: list[Tensor] = []

        def values_of(given: Any) -> Any:
            if isinstance(given, DeviceTensor):
                there[id(given.on_host)] = given
                return given.on_host
            if isinstance(given, Tensor):
                host.append(given)
            return list(map(values_of, given)) if isinstance(given, tuple | list) else given

        def placed(made: Any) -> Any:
            if isinstance(made, Tensor):  # in-place operations return the tensor that was given
                return there[id(made)] if id(made) in there else DeviceTensor(made)
            return type(made)(map(placed, made)) if isinstance(made, tuple | list) else made

        values = list(map(values_of, args))
        named = {name: values_of(value) for name, value in kwargs.items()} if kwargs else {}
        if function in INDEXING:
            check_indices(watch, function, args, host)
        elif needs_values(function):
            watch.note(f"read by {function}")
        if host:
            check_host(watch, function, args, host)
        made = function(*values, **named)
        if writes(function) and any(tensor.shape != tensor.on_host.shape for tensor in there.values()):
            raise NotImplementedError(f"{function} gives a tensor of the device another shape in place")
        return args[0] if function is aten.copy_.default else placed(made)


class Watch:
    """What made the host wait, in the order in which it happened, split where a U-Net's calls ended.

    Attributes:
        waits: what did so before the U-Net's first call ended, from there to the second's end, …, and after the last.
    """

    def __init__(self) -> None:
        self.waits: list[list[str]] = [[]]
        self._hook: Any = None

    def follow(self, unet: nn.Module) -> None:
        """Begins anew, and has each end of a call of this U-Net begin a new list."""
        if self._hook is not None:
            self._hook.remove()
        self.waits = [[]]
        self._hook = unet.register_forward_hook(lambda *_: self.waits.append([]))

    def note(self, what: str) -> None:
        self.waits[-1].append(what)

    @property
    def steps(self) -> list[list[str]]:
        """Step by step, from the end of the U-Net's first call to the end of its last: the loop but for its two ends.

        In each are the sampler's part of one step and the U-Net's call of the next.
        """
        return self.waits[1:-1]


@contextmanager
def absent_device() -> Iterator[Watch]:
    """While open, the simulated device exists."""
    DeviceTensor.watch = watch = Watch()
    overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # a module's parameters become DeviceTensors
    try:
        with Moves(watch):
            yield watch
    finally:
        DeviceTensor.watch = None
        torch.__future__.set_overwrite_module_params_on_conversion(overwrite)


@cache
def needs_values(function: Any) -> bool:
    """Whether it gives a number, equality, or a result whose shape depends on values: the host waits for those."""
    tags = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
    return bool(tags.intersection(getattr(function, "tags", ()))) or function is aten._linalg_check_errors.default


@cache
def writes(function: Any) -> bool:
    """Whether it writes into a tensor that it is given."""
    return hasattr(function, "_schema") and function._schema.is_mutable


def check_indices(watch: Watch, function: Any, args: Any, host: list[Tensor]) -> None:
    """Indices may be of the host; they are copied. Those of a mask depend on its values."""
    indices = [index for index in args[1] if index is not None]
    if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
        watch.note(f"read by {function}, a mask")
    if isinstance(args[0], DeviceTensor):
        for k in reversed(range(len(host))):
            if any(host[k] is index for index in indices):
                watch.note(f"copied to the device by {function}, an index")
                del host[k]


def check_host(watch: Watch, function: Any, args: Any, host: list[Tensor]) -> None:
    """Copies are noted, and so is all else refused but a single number. Raises RuntimeError, as CUDA does."""
    if function is aten.copy_.default:
        watch.note(f"{'read' if host[0] is args[0] else 'copied to the device'} by {function}")
    elif any(tensor.ndim for tensor in host):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in host)
        raise RuntimeError(f"{function}: expected all tensors on {DEVICE}, but those of {shapes} are on the CPU")
    elif writes(function) and host[0] is args[0]:
        raise RuntimeError(f"{function} writes from {DEVICE} into a number of the CPU")


class Moves(TorchFunctionMode):
    """Has the functions that make or move tensors know the device."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is F.linear and any(isinstance(arg, DeviceTensor) for arg in args):
            # As one operation; otherwise it would be five, and those more than half of all.
            for arg in args:
                if isinstance(arg, DeviceTensor) and arg.requires_grad:
                    arg.on_host.requires_grad_()  # by which it chooses between two ways to the product
            return DeviceTensor.__torch_dispatch__(function, types, args, kwargs)
        if function is Tensor.to:
            return self.move(*args, **kwargs)
        if function is Tensor.cpu:
            return self.move(args[0], "cpu")
        if function is Tensor.tolist and isinstance(args[0], DeviceTensor):
            return self.move(args[0], "cpu").tolist()
        if function in (Tensor.numpy, Tensor.__array__) and isinstance(args[0], DeviceTensor):
            raise TypeError(f"can't convert {DEVICE} device type tensor to numpy; use Tensor.cpu() first")
        if function in OF_NUMBERS and isinstance(args[0], tuple | list):
            args = (self.numbers(args[0]), *args[1:])
        if kwargs.get("device") is None or torch.device(kwargs["device"]).type != DEVICE.type:
            return function(*args, **kwargs)
        made = function(*args, **{**kwargs, "device": "cpu"})
        if isinstance(made, DeviceTensor):  # like a real one
            return made
        if function in OF_NUMBERS:
            self.watch.note(f"copied to the device by torch.{function.__name__}")
        return DeviceTensor(made)

    def numbers(self, given: Any) -> Any:
        """A list, or a list of lists, with the numbers that are on the device read."""
        if isinstance(given, DeviceTensor):
            self.watch.note("read by torch.tensor")
            return given.on_host
        return list(map(self.numbers, given)) if isinstance(given, tuple | list) else given

    def move(self, tensor: Any, *args: Any, **kwargs: Any) -> Tensor:
        """`Tensor.to`, of any signature."""
        args = tuple(kwargs.pop(name) for name in ("device", "other") if name in kwargs) + args
        if args and isinstance(args[0], Tensor):
            args = (args[0].device, args[0].dtype, *args[1:])
        if not args or not isinstance(args[0], str | int | torch.device):
            return tensor.to(*args, **kwargs)
        there = torch.device(args[0]).type == DEVICE.type
        named = dict(zip(("dtype", "non_blocking", "copy"), args[1:], strict=False)) | kwargs
        if there == isinstance(tensor, DeviceTensor):
            return tensor.to(**named) if named else tensor
        if there:
            self.watch.note(COPIED)
            return DeviceTensor(tensor.to(**named | {"copy": True}))
        self.watch.note("read by Tensor.to")
        return tensor.on_host.to(**named | {"copy": True})
