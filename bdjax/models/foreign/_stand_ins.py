"""What the names in a PyTorch file stand for: tensors, storages, NumPy's values, and things that are left out.

Any other name refuses the file, whether it would do harm or not.
"""

from __future__ import annotations

import dataclasses
import math
import re
import sys
from collections.abc import Callable
from typing import TypeAlias

import jax.numpy as jnp
import numpy as np

from bdjax.models.foreign._pickled import Refused, Value

# PyTorch's words for the types of numbers, as classes of storages and as its own types
_TYPES = {
    "Float": "<f4",
    "Double": "<f8",
    "Half": "<f2",
    "BFloat16": jnp.bfloat16,
    "Long": "<i8",
    "Int": "<i4",
    "Short": "<i2",
    "Char": "<i1",
    "Byte": "<u1",
    "Bool": "?",
    "Untyped": "<u1",
}
_DTYPES = {
    "float32": "<f4",
    "float64": "<f8",
    "float16": "<f2",
    "bfloat16": jnp.bfloat16,
    "int64": "<i8",
    "int32": "<i4",
    "int16": "<i2",
    "int8": "<i1",
    "uint8": "<u1",
    "uint16": "<u2",
    "uint32": "<u4",
    "uint64": "<u8",
    "bool": "?",
}
_MOST_AXES = 32
_REPEATS = 16  # how often a tensor may use each number of its storage, as an expanded one does
_SMALL = 1024  # numbers that anything may have


@dataclasses.dataclass(frozen=True, slots=True)
class Storage:
    """A piece of memory in the file: ``count`` numbers under a key, from number ``start`` on."""

    dtype: np.dtype
    key: str
    count: int
    start: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Tensor:
    """A view of a storage. ``offset`` and ``stride`` count numbers of its own type."""

    storage: Storage
    dtype: np.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Opaque:
    """Something of a known class without weights, of which nothing is kept."""

    name: str

    def call(self, arguments: tuple[Value, ...]) -> Value:
        """Return the same: an object of the class."""
        del arguments
        return self


@dataclasses.dataclass(frozen=True, slots=True)
class Type:
    """A type of numbers: a class of storages, or PyTorch's own."""

    dtype: np.dtype


@dataclasses.dataclass(frozen=True, slots=True)
class _Function:
    name: str
    function: Callable[..., Value]

    def call(self, arguments: tuple[Value, ...]) -> Value:
        try:
            return self.function(*arguments)
        except (TypeError, ValueError, AttributeError) as error:
            if isinstance(error, Refused):
                raise
            raise Refused(f"is damaged: it calls {self.name} with wrong values") from error


@dataclasses.dataclass(slots=True)
class _NumpyType:
    dtype: np.dtype

    def set_state(self, state: Value) -> None:
        """Take in the byte order, the second entry of the state."""
        if isinstance(state, tuple) and state[1:2] == (">",):
            self.dtype = self.dtype.newbyteorder(">")


@dataclasses.dataclass(slots=True)
class NumpyArray:
    """An array of NumPy's, which gets its values after it is made."""

    array: np.ndarray | None = None

    def set_state(self, state: Value) -> None:
        """Take in (version, shape, type, whether the first axis runs fastest, bytes); others are left out."""
        if not isinstance(state, tuple) or len(state) != 5:
            return
        _, shape, kind, transposed, raw = state
        if not isinstance(shape, tuple) or len(shape) > _MOST_AXES or not _are_counts(shape):
            return
        if isinstance(kind, _NumpyType) and isinstance(raw, bytes):
            values = np.frombuffer(raw, kind.dtype)
            if math.prod(shape) == values.size:
                self.array = values.reshape(shape, order="F" if transposed else "C")


def find(name: str) -> Value:
    """Return what a dotted name in a pickle stands for.

    Raises:
      Refused: it has no place in a file of weights; the message says what it is.
    """
    name = name.replace("numpy._core.", "numpy.core.").replace("__builtin__.", "builtins.")
    if name in _FUNCTIONS:
        return _Function(name, _FUNCTIONS[name])
    if name in _OPAQUE:
        return Opaque(name)
    module, _, last = name.rpartition(".")
    kind = last.removesuffix("Storage")
    if module in ("torch", "torch.storage", "torch.cuda") and kind != last:
        if kind not in _TYPES:
            raise Refused(f"holds numbers of type {name}; networks here are of real numbers")
        return Type(np.dtype(_TYPES[kind]))
    if module == "torch" and last in _DTYPES:
        return Type(np.dtype(_DTYPES[last]))
    if module == "torch.serialization" and last == "_get_layout":
        return Opaque(name)
    raise Refused(_why_not(name))


def _why_not(name: str) -> str:
    root = name.partition(".")[0]
    shown = name[:100]
    if root in sys.stdlib_module_names or root in ("nt", "posix"):
        return f"calls {shown}, which no file of weights needs; nothing of it was executed"
    if root == "torch" and not name.startswith("torch.nn."):
        return f"holds {shown}, a kind of tensor or object that is not read"
    whole = f"holds a whole object of the class {shown}, which only its own code can load"
    remedy = "save the weights alone, torch.save(model.state_dict(), …)"
    return f"{whole}, and nothing here executes code from a file: {remedy}"


def storage(saved: Value) -> Storage:
    """Return the storage that a persistent id names: ('storage', class, key, device, count[, view])."""
    if not isinstance(saved, tuple) or len(saved) < 5 or saved[0] != "storage":
        raise Refused("is damaged: it refers to something that is no storage")
    _, kind, key, _, count, *rest = saved
    if not isinstance(kind, Type) or not isinstance(key, str | int) or not _is_count(count):
        raise Refused("is damaged: a storage has no type, key or size")
    if rest and rest[0] is not None:  # the legacy format: (key, start, count) of a part
        view = rest[0]
        if not isinstance(view, tuple) or len(view) != 3 or not _are_counts(view[1:]):
            raise Refused("is damaged: a part of a storage has no place")
        if view[1] + view[2] > count:
            raise Refused("is damaged: a part of a storage lies outside of it")
        return Storage(kind.dtype, str(key), view[2], view[1])
    return Storage(kind.dtype, str(key), count)


def _is_count(value: Value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**48


def _are_counts(values: Value) -> bool:
    return isinstance(values, tuple) and all(_is_count(value) for value in values)


def _tensor(
    memory: Value, offset: Value, size: Value, stride: Value, *rest: Value, dtype: Value = None
) -> Tensor:
    del rest
    if not isinstance(memory, Storage):
        raise Refused("is damaged: a tensor has no storage")
    kind = dtype.dtype if isinstance(dtype, Type) else memory.dtype
    numbers = memory.count * memory.dtype.itemsize // kind.itemsize
    if not _is_count(offset) or not _are_counts(size) or not _are_counts(stride):
        raise Refused("is damaged: a tensor's size is no list of whole numbers from 0 on")
    made = Tensor(memory, kind, offset, size, stride)  # pyright: ignore[reportArgumentType]
    _check_view(made, numbers)
    return made


def _check_view(tensor: Tensor, numbers: int) -> None:
    """Refuse a tensor that reaches beyond its storage, or makes much of a little memory."""
    size, stride = tensor.size, tensor.stride
    if len(size) != len(stride) or len(size) > _MOST_AXES:
        raise Refused(f"is damaged: a tensor has {len(size)} axes and {len(stride)} strides")
    count = math.prod(size)
    if count == 0:
        return
    last = tensor.offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if last >= numbers:
        raise Refused(f"is damaged: a tensor of size {size} reaches beyond its {numbers} numbers")
    if count > max(_SMALL, _REPEATS * numbers):
        raise Refused(f"makes a tensor of size {size} of {numbers} numbers")


def _tensor_of_type(
    memory: Value, offset: Value, size: Value, stride: Value, *rest: Value
) -> Tensor:
    """Read the third form: (…, requires_grad, hooks, type, metadata)."""
    if len(rest) < 3 or not isinstance(rest[2], Type):
        raise Refused("is damaged: a tensor has no type")
    return _tensor(memory, offset, size, stride, dtype=rest[2])


def _parameter(data: Value, *rest: Value) -> Value:
    del rest
    return data


def _with_attributes(function: Value, kind: Value, arguments: Value, state: Value = None) -> Value:
    del kind, state
    if not isinstance(function, _Function) or not isinstance(arguments, tuple):
        raise Refused("is damaged: a tensor is made by no function")
    # Of what these are given nothing is copied, so that it need not be counted again
    if not function.name.startswith("torch._utils._rebuild_"):
        raise Refused(f"is damaged: a tensor is made by {function.name}")
    return function.call(arguments)


def _dict(*arguments: Value) -> Value:
    """Make the dict of an ordered one: of nothing, of a dict, or of a list of pairs."""
    given = arguments[-1] if arguments else None
    if isinstance(given, dict):
        return given
    made: dict[Value, Value] = {}
    if isinstance(given, list):
        for pair in given:
            if isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], str):
                made[pair[0]] = pair[1]
    return made


def _numpy_type(code: Value, *rest: Value) -> _NumpyType:
    del rest
    if not isinstance(code, str) or not re.fullmatch("[fiub][1248]", code):
        return _NumpyType(np.dtype("V1"))  # text and objects, of which nothing is read
    return _NumpyType(np.dtype(code).newbyteorder("<"))


def _numpy_scalar(kind: Value, raw: Value = b"") -> Value:
    if isinstance(kind, _NumpyType) and kind.dtype.kind in "fiub" and isinstance(raw, bytes):
        return np.frombuffer(raw, kind.dtype, 1)[0].item()
    return Opaque("a value of NumPy's")


def _encoded(text: Value, coding: Value = "latin1") -> Value:
    if not isinstance(text, str) or coding not in ("latin1", "latin-1"):
        raise Refused("is damaged: it has bytes that are no text")
    return text.encode("latin-1")


def _listed(items: Value = ()) -> Value:
    return list(items) if isinstance(items, list | tuple) else []


def _sized(items: Value = ()) -> Value:
    return tuple(items) if isinstance(items, list | tuple) else ()


def _new(kind: Value, *rest: Value) -> Value:
    del rest
    return kind


def _array(*arguments: Value) -> NumpyArray:
    del arguments
    return NumpyArray()


_Functions: TypeAlias = dict[str, Callable[..., Value]]
_FUNCTIONS: _Functions = {
    "collections.OrderedDict": _dict,
    "collections.defaultdict": _dict,
    "collections.Counter": _dict,
    "builtins.dict": _dict,
    "builtins.list": _listed,
    "builtins.set": _listed,
    "builtins.frozenset": _listed,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_type,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _with_attributes,
    "torch.Size": _sized,
    "numpy.core.multiarray._reconstruct": _array,
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy.dtype": _numpy_type,
    "_codecs.encode": _encoded,
    "copyreg._reconstructor": _new,
    "copy_reg._reconstructor": _new,
}
_OPAQUE = {
    "argparse.Namespace",
    "builtins.complex",
    "builtins.object",
    "datetime.date",
    "datetime.datetime",
    "datetime.timedelta",
    "numpy.ndarray",
    "pathlib.Path",
    "pathlib.PosixPath",
    "pathlib.PurePosixPath",
    "pathlib.WindowsPath",
    "pathlib._local.PosixPath",
    "pathlib._local.WindowsPath",
    "PIL.Image.Image",
    "torch.device",
    "torch.Tensor",
    "torch.nn.parameter.Parameter",
    "types.SimpleNamespace",
}
