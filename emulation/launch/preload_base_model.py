"""A forkserver imports this module to load the base model once for all devices.

Loading takes longer than all other steps of a device before its first round. All children share the memory
of the loaded model, because no child writes to it.
"""

import os
from contextlib import suppress

from peers import plugins
from peers.config import ModelConfig
from peers.models.loader import keep_model

NAME = "UNWEFT_BASE_MODEL"  # environment variable: a ModelConfig as JSON
PLUGINS = "UNWEFT_PLUGINS"  # environment variable: modules that may add the model, with spaces between them

if NAME in os.environ:
    with suppress(Exception):  # a device that needs the model loads it itself and reports the error
        plugins.load(os.environ.get(PLUGINS, "").split())
        keep_model(ModelConfig.model_validate_json(os.environ[NAME]))
