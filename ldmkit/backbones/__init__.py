"""Backbones: the raw networks ``(x, t, context, context_mask, vector, label) -> prediction``.

A backbone is an ``nn.Module`` with ``channels``, ``accepts`` and ``multiple``; ``bind(cond, times)`` is optional and
gives a per-call object ``(x, t) -> prediction``. Nothing of a call is stored on the module.
"""
