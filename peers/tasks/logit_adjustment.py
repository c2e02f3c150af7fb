"""Logit adjustment: a loss that does not learn how frequent each class is in a device's own data.

The loss of a device adds tau log(share of the class in its own data) to the logits (Menon et al., "Long-tail
learning via logit adjustment", 2021; for devices with skewed labels: Zhang et al., "Federated learning with
label distribution skew via logits calibration", 2022). Without it each owner's block raises the classes that
the owner has most of, and the sum of all blocks is no optimum of the mean loss.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from peers.errors import InputError
from peers.tasks.batch import Batch
from peers.tasks.encode_images import EncodedImages, ImageFormat

UNSEEN = 0.5  # images that each class is counted to have more, so that a class without images has a logarithm


def adjusted(data: Batch, tau: float, form: ImageFormat | None) -> Batch:
    """`data` with the shift of the logits that its own labels give, times tau. form: None for text.

    Raises InputError for data that are no images, if tau is not 0.
    """
    if not tau:
        return data
    if form is None or not isinstance(data, EncodedImages):
        raise InputError(
            f"train.logit_adjustment: {tau:g}, and the data are text; allowed: 0, or a classifier of images"
        )
    counts = torch.bincount(data.labels, minlength=form.classes).float() + UNSEEN
    return replace(data, logit_shift=tau * (counts / counts.sum()).log())
