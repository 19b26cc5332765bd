"""The names that pickled checkpoints hold, and what each of them stands for; none of them is ever imported.

They are those that ``torch.save`` writes for state dicts, and those that training with Lightning 1 and 2, NumPy,
OmegaConf and the standard library leaves beside them in files of the original and of Stable Diffusion.
"""

from __future__ import annotations

from collections.abc import Mapping

_KINDS = {
    "Float": "float32",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Double": "float64",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
}

STORAGES: Mapping[str, str] = {
    f"{module}.{name}Storage": kind for name, kind in _KINDS.items() for module in ("torch", "torch.cuda")
}
"""A storage's class -> the kind of its numbers, as an attribute of torch."""

_LIGHTNING = ("pytorch_lightning", "lightning.pytorch", "lightning")

DICTIONARIES = frozenset(
    {
        "collections.OrderedDict",
        "collections.defaultdict",
        "collections.Counter",
        "builtins.dict",
        "__builtin__.dict",
        "lightning_fabric.utilities.data.AttributeDict",
        "lightning.fabric.utilities.data.AttributeDict",
        *(f"{root}.utilities.parsing.AttributeDict" for root in _LIGHTNING),
    }
)
"""What stands for a dictionary."""

_CALLBACKS = {
    "model_checkpoint": "ModelCheckpoint",
    "early_stopping": "EarlyStopping",
    "lr_monitor": "LearningRateMonitor",
    "progress": "ProgressBar",
    "gpu_stats_monitor": "GPUStatsMonitor",
    "timer": "Timer",
    "stochastic_weight_avg": "StochasticWeightAveraging",
}
_BUILTINS = ("int", "float", "bool", "complex", "str", "bytes", "bytearray", "list", "tuple", "set", "frozenset")
_DTYPES = (*_KINDS.values(), "float", "half", "double", "long", "int", "short", "strided", "contiguous_format")

INERT = frozenset(
    {
        *(f"{root}.callbacks.{module}.{name}" for root in _LIGHTNING for module, name in _CALLBACKS.items()),
        *(f"{root}.callbacks.{name}" for root in _LIGHTNING for name in _CALLBACKS.values()),
        *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
        *(f"numpy.dtypes.{name}DType" for name in ("Float64", "Float32", "Int64", "Int32", "Bool")),
        *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in (*_BUILTINS, "object")),
        *(f"torch.{name}" for name in (*_DTYPES, "Size", "device")),
        "numpy.dtype",
        "numpy.ndarray",
        "numpy.bool_",
        "_codecs.encode",
        "copyreg._reconstructor",
        "copy_reg._reconstructor",
        "argparse.Namespace",
        "datetime.timedelta",
        "datetime.datetime",
        "pathlib.Path",
        "pathlib.PosixPath",
        "pathlib.PurePosixPath",
        "pathlib.WindowsPath",
        "pathlib._local.PosixPath",
        "pathlib._local.WindowsPath",
        "typing.Any",
        "omegaconf.base.ContainerMetadata",
        "omegaconf.base.Metadata",
        "omegaconf.dictconfig.DictConfig",
        "omegaconf.listconfig.ListConfig",
        "omegaconf.nodes.AnyNode",
        "omegaconf.nodes.BooleanNode",
        "omegaconf.nodes.FloatNode",
        "omegaconf.nodes.IntegerNode",
        "omegaconf.nodes.StringNode",
        "torch.Tensor",
        "torch.nn.parameter.Parameter",
    }
)
"""What checkpoints hold beside tensors and what no model needs; calling one gives something that does nothing."""
