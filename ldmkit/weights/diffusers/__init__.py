"""Model folders in the layout of diffusers: read into a model of ours, and written from one.

A folder holds ``model_index.json`` and one folder per component, each with a JSON configuration and safetensors. It is
read as data: diffusers itself is never imported, and no name from a file is looked up anywhere but in our own tables.
"""

from ldmkit.weights.diffusers.exporting import export_diffusers as export_diffusers
from ldmkit.weights.diffusers.importing import import_diffusers as import_diffusers
from ldmkit.weights.diffusers.importing import read_diffusers_recipe as read_diffusers_recipe
from ldmkit.weights.diffusers.schedule import Spacing as Spacing
