"""Conditioners for ldmkit whose networks and tokenizers come from transformers.

===============================  ==========  ============================  =========================================
conditioner                      reads       provides                      as in
===============================  ==========  ============================  =========================================
:class:`~.bert.BertText`         ``prompt``  ``context``                   latent diffusion, text to image
:class:`~.bert.Bert`             ``prompt``  ``context`` with its mask
:class:`~.clip_text.ClipText`    ``prompt``  ``context``, ``vector``       Stable Diffusion 1, retrieval-augmented LDM
:class:`~.clip_image.ClipImage`  ``image``   ``context``, ``vector``       image variations
:class:`~.t5.T5Text`             ``prompt``  ``context`` with its mask     text to image with T5
===============================  ==========  ============================  =========================================

This module imports nothing: the registry reads it to list names. The classes are in the modules named above.
"""
