"""OpenCLIP for ldmkit: two conditioners and a guidance.

===================================  ==========  =========================  ====================================
component                            reads       provides                   as in
===================================  ==========  =========================  ====================================
:class:`~.text.OpenClipText`         ``prompt``  ``context``, ``vector``    Stable Diffusion 2, SDXL
:class:`~.image.OpenClipImage`       ``image``   ``context``, ``vector``    Stable Diffusion 2.1 unCLIP
:class:`~.guidance.ClipGuidance`                                            CLIP-guided sampling of any model
===================================  ==========  =========================  ====================================

This module imports nothing: the registry reads it to list names. The classes are in the modules named above.
"""
