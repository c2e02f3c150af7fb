"""Base models: loading, the registry of `model.name`, and the shipped model `tiny`."""

from peers.models.loader import LoadedModel, ModelFactory, Pretrained, load_model, load_pretrained, models

__all__ = ["LoadedModel", "ModelFactory", "Pretrained", "load_model", "load_pretrained", "models"]
