"""The keys of `correction`: what the devices do after each membership event (methods 6 and 7)."""

from __future__ import annotations

from typing import Annotated, Literal

from peers.section import Section, about


class CorrectionConfig(Section):
    """The correction after each membership event (methods 6 and 7)."""

    policy: Annotated[
        str, about("Name of a policy or a schedule: `unweft list policies`.", source="method 7")
    ] = "gamma-1"
    rounds: Annotated[
        int, about("K: rounds of correction after an event.", unit="rounds", source="method 6", ge=0)
    ] = 20
    period: Annotated[
        int, about("From one diagnosis to the next, on all devices.", unit="rounds", source="method 6", ge=1)
    ] = 5
    delay: Annotated[
        int,
        about("From a diagnosis to its decision: reports travel several hops.", unit="rounds", ge=1),
    ] = 2
    sketch: Annotated[
        int,
        about(
            "Numbers in the sketch of a group's gradient.", unit="numbers", source="method 6", ge=16, le=4096
        ),
    ] = 256
    labels: Annotated[
        Literal["data", "model"],
        about("data: the empirical Fisher matrix. model: the true one.", source="method 6"),
    ] = "data"
    refit: Annotated[
        float, about("Share of the handover refit. 0: no refit.", source="method 4", ge=0, le=1)
    ] = 0.0
    ewc: Annotated[
        float, about("lambda of elastic weight consolidation, a baseline. 0: none.", source="method 10", ge=0)
    ] = 0.0
    fisher: Annotated[
        bool,
        about(
            "Own steps in the eigenbasis of the Fisher matrix at the event.", source="peers/learning/kfac.py"
        ),
    ] = False
    interference: Annotated[
        bool,
        about(
            "Fisher steps relative to the inputs of the neighbours.",
            source="peers/learning/foreign_inputs.py",
        ),
    ] = False
    projection: Annotated[
        bool,
        about(
            "Own steps do not bring back the deleted block's output, a baseline.",
            source="peers/unlearning/projection.py",
        ),
    ] = False
    steps_min: Annotated[
        int | None,
        about("n_min. Without it: half of round.local_steps.", unit="steps", source="method 7", ge=1),
    ] = None
    steps_max: Annotated[
        int | None,
        about("n_max. Without it: twice round.local_steps.", unit="steps", source="method 7", ge=1),
    ] = None
    prox_max: Annotated[float, about("lambda_max: largest proximal damping.", source="method 10", gt=0)] = (
        1e-3
    )
    c: Annotated[
        float,
        about("c in R_con and R_het; 1/4 is exact for equal curvatures.", source="method 6", gt=0),
    ] = 0.25
    gamma_min: Annotated[
        float,
        about("Least mixing strength; mixing.gamma if that is smaller.", source="method 10", gt=0, le=1),
    ] = 0.4
    period_max: Annotated[
        int, about("Largest synchronisation period H_g.", unit="rounds", source="method 7", ge=1)
    ] = 8
    offset_overhead: Annotated[
        bool,
        about("A coarser codec saves the bytes of the reports.", source="peers/protocol/overhead_offset.py"),
    ] = True
    masked: Annotated[
        bool,
        about("Reports are masked pairwise, so that only their mean can be read.", source="docs/privacy.md"),
    ] = False
