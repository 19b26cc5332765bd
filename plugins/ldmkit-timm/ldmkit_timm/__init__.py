"""timm for ldmkit: image conditioners, a transformer backbone, a perceptual distance.

=====================================  ==============================  ===================================
component                              reads                           provides
=====================================  ==============================  ===================================
:class:`~.image.TimmImage`             ``image``                       ``context`` or ``vector``
:class:`~.dit.DiT`                     ``label``, ``vector``,          the prediction
                                       ``context``, ``concat``
:class:`~.distance.TimmDistance`       two images                      a distance; a class, not registered
=====================================  ==============================  ===================================

This module imports nothing: the registry reads it to list names. The classes are in the modules named above.
"""
