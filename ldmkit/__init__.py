"""ldmkit: interchangeable components for latent diffusion models.

The public names below are imported when they are first used: ``import ldmkit`` alone imports neither torch nor any
plug-in.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ldmkit._version import __version__ as __version__
from ldmkit.errors import AmbiguousComponentError as AmbiguousComponentError
from ldmkit.errors import BatchError as BatchError
from ldmkit.errors import CheckpointError as CheckpointError
from ldmkit.errors import CompositionError as CompositionError
from ldmkit.errors import FactoryError as FactoryError
from ldmkit.errors import LdmkitError as LdmkitError
from ldmkit.errors import LdmkitPluginWarning as LdmkitPluginWarning
from ldmkit.errors import NonFiniteError as NonFiniteError
from ldmkit.errors import OptionError as OptionError
from ldmkit.errors import PluginError as PluginError
from ldmkit.errors import PluginLoadError as PluginLoadError
from ldmkit.errors import ReservedNameError as ReservedNameError
from ldmkit.errors import UnknownComponentError as UnknownComponentError

# Type checkers and editors read the imports, Python reads the table; a test holds one to the other.
if TYPE_CHECKING:
    from ldmkit.conditioning import Conditioner as Conditioner
    from ldmkit.conditioning import Conditioning as Conditioning
    from ldmkit.conditioning import Joint as Joint
    from ldmkit.denoiser import Denoiser as Denoiser
    from ldmkit.model import LatentDiffusion as LatentDiffusion
    from ldmkit.model import compose as compose
    from ldmkit.parts import Part as Part
    from ldmkit.parts import Recipe as Recipe
    from ldmkit.parts import Source as Source
    from ldmkit.pipelines import Pipeline as Pipeline
    from ldmkit.pipelines import pipeline as pipeline
    from ldmkit.process import Level as Level
    from ldmkit.process import Levels as Levels
    from ldmkit.process import Process as Process
    from ldmkit.recipes import recipe as recipe
    from ldmkit.registry import build as build
    from ldmkit.registry import describe as describe
    from ldmkit.registry import hookimpl as hookimpl
    from ldmkit.registry import names as names
    from ldmkit.registry import origin as origin
    from ldmkit.registry import plugins as plugins
    from ldmkit.registry import register as register
    from ldmkit.tasks.contract import Frame as Frame
    from ldmkit.weights.diffusers import export_diffusers as export_diffusers
    from ldmkit.weights.diffusers import import_diffusers as import_diffusers
    from ldmkit.weights.importing import import_checkpoint as import_checkpoint
    from ldmkit.weights.importing import import_first_stage as import_first_stage
    from ldmkit.weights.native import load as load

_HOMES = {
    "Conditioner": "ldmkit.conditioning",
    "Conditioning": "ldmkit.conditioning",
    "Joint": "ldmkit.conditioning",
    "Denoiser": "ldmkit.denoiser",
    "LatentDiffusion": "ldmkit.model",
    "compose": "ldmkit.model",
    "Pipeline": "ldmkit.pipelines",
    "pipeline": "ldmkit.pipelines",
    "Level": "ldmkit.process",
    "Levels": "ldmkit.process",
    "Process": "ldmkit.process",
    "Part": "ldmkit.parts",
    "Recipe": "ldmkit.parts",
    "Source": "ldmkit.parts",
    "recipe": "ldmkit.recipes",
    "build": "ldmkit.registry",
    "describe": "ldmkit.registry",
    "hookimpl": "ldmkit.registry",
    "names": "ldmkit.registry",
    "origin": "ldmkit.registry",
    "plugins": "ldmkit.registry",
    "register": "ldmkit.registry",
    "Frame": "ldmkit.tasks.contract",
    "export_diffusers": "ldmkit.weights.diffusers",
    "import_diffusers": "ldmkit.weights.diffusers",
    "import_checkpoint": "ldmkit.weights.importing",
    "import_first_stage": "ldmkit.weights.importing",
    "load": "ldmkit.weights.native",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any public name
    """Import a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'ldmkit' has no attribute '{name}'", name=name, obj=import_module(__name__))
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
