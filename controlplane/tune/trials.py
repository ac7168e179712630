"""A trial: one arm of one probe, as it stands in the journal, in the study and in front of people."""

from pydantic import BaseModel, ConfigDict


class Trial(BaseModel):
    """Everything about one arm. Effects are differences in pass rate by the end of the probe."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")

    number: int
    """In the study."""
    probe_id: str
    arm: str
    design: str
    tunable: str
    value: float
    """What the arm was trained with."""
    relative: float
    """ln(value / value in force)."""
    trigger: str
    """Why there was a probe at all."""
    from_step: int
    until_step: int
    branch: int
    """The snapshot that all arms began from: the run at `from_step` on this branch."""
    incarnation: str = ""
    """The process of the trainer that was asked; another one knows nothing of the probe."""
    order_id: str = ""
    """Of the person's order that asked for the probe; empty where nobody did."""
    outcome: str = "running"
    """adopt, reject, inconclusive; or cancelled, with the reason."""
    reason: str = ""
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    gain: float | None = None
    """What the control gained in the same steps."""
    steps: int = 0
    device_seconds: float = 0.0
    forecast_before: float | None = None
    """Probability of the target, or the median pass rate at the end where there is no target."""
    forecast_after: float | None = None

    @property
    def efficiency(self) -> float | None:
        """The effect in units of what the control gained, bounded: what is told to Optuna, comparable between runs."""
        if self.effect is None:
            return None
        scale = max(abs(self.gain or 0.0), 0.02)
        return max(-5.0, min(5.0, self.effect / scale))

    def attributes(self) -> dict[str, float | int | str]:
        """Plain scalars, as the viewer shows them."""
        fields = self.model_dump(exclude={"number", "incarnation", "order_id"}, exclude_none=True)
        return {key.replace("_", " "): round(v, 6) if isinstance(v, float) else v for key, v in fields.items()}
