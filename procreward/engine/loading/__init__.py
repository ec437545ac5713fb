"""From a folder or hub id to a model that is ready: device, precision, adapters.

* :func:`load_model`, :class:`LoadedModel` - the families that our own engine runs.
* :mod:`procreward.engine.loading.generic` - any other image-text-to-text model.
"""

from procreward.engine.loading.model import LoadedModel, load_model

__all__ = ["LoadedModel", "load_model"]
