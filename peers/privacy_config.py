"""The keys of `privacy`: differential privacy of what a device publishes (docs/privacy.md)."""

from __future__ import annotations

from typing import Annotated, Literal

from peers.section import Section, about


class PrivacyConfig(Section):
    """Differential privacy of single examples in the own block (docs/privacy.md). Off without epsilon and
    noise."""

    epsilon: Annotated[
        float, about("What a device may spend in a run. Then it takes no more own steps. 0: no limit.", ge=0)
    ] = 0.0
    delta: Annotated[
        float, about("delta of the guarantee. Less than 1 / examples of a device.", gt=0, lt=1)
    ] = 1e-5
    clip: Annotated[
        float, about("C: the largest norm of the gradient of one example.", source="DP-SGD", gt=0)
    ] = 1.0
    noise: Annotated[
        float,
        about(
            "Noise multiplier sigma. 0: the least that keeps round.count * round.local_steps steps within"
            " epsilon.",
            formula="deviation of the noise = sigma C",
            source="DP-SGD",
            ge=0,
        ),
    ] = 0.0
    randomness: Annotated[
        Literal["seeded", "secret"],
        about(
            "seeded: samples and noise from the seed, for experiments. secret: from the operating system, for"
            " data that need protection.",
            source="docs/privacy.md",
        ),
    ] = "seeded"

    @property
    def on(self) -> bool:
        """Whether the devices train with differential privacy."""
        return self.epsilon > 0 or self.noise > 0
