"""To be imported by a forkserver: the base model that the launcher names, loaded once for all devices.

Loading takes a device longer than all else that it does before its first round, and what nobody writes to is
in memory once.
"""

import os
from contextlib import suppress

from peers.config import ModelConfig
from peers.models.loader import keep_model

NAME = "UNWEFT_BASE_MODEL"  # environment variable: a ModelConfig as JSON

if NAME in os.environ:
    with suppress(Exception):  # a device that needs it will load it, and say what is wrong
        keep_model(ModelConfig.model_validate_json(os.environ[NAME]))
