"""The sections `train` and `finetune` of a configuration: how all weights are trained."""

from __future__ import annotations

# Optional, not `X | None`: pydantic evaluates the annotations, and Python 3.9 cannot evaluate that form.
from typing import Annotated, ClassVar, Iterator, Literal, Optional, Set, Tuple

from pydantic import Field, field_validator

from gcp.backend.onnx_files import is_onnx
from gcp.options import Options, listed
from gcp.storage import network_files


class Recipe(Options):
    """How all weights are trained: SGD, with linear learning-rate warm-up, then a cosine to zero or steps down."""

    FILES: ClassVar[Set[str]] = {"teacher"}

    epochs: int = Field(ge=0, le=10**5, description="passes over the training images, 0 or more")
    lr: float = Field(0.1, gt=0, le=1000, description="highest learning rate, above 0")
    momentum: float = Field(0.9, ge=0, lt=1, description="in [0, 1)")
    nesterov: bool = Field(False, description="true: Nesterov momentum (GluonCV's `nag`)")
    wd: float = Field(1e-4, ge=0, le=1000, description="weight decay, 0 or more")
    warmup_epochs: float = Field(0.0, ge=0, le=10**5, description="epochs of linear warm-up, 0 or more")
    schedule: Literal["cosine", "step"] = Field(
        "cosine", description="the learning rate after warm-up: a half cosine down to zero, or steps down"
    )
    step_epochs: Tuple[Annotated[int, Field(ge=1, le=10**5)], ...] = Field(
        (), description="schedule step: a list of the epochs after which the rate is reduced, such as [30, 60, 90]"
    )
    step_factor: float = Field(0.1, gt=0, lt=1, description="schedule step: the factor of each reduction, in (0, 1)")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="in [0, 1)")
    mixup: float = Field(
        0.0, ge=0, le=1000, description="alpha of the Beta distribution of the mixing weights; 0: no mixup"
    )
    dtype: Literal["float32", "float16"] = Field(
        "float32", description="the dtype of computation; float16 needs a GPU and updates float32 master weights"
    )
    teacher: Optional[str] = Field(
        None,
        min_length=1,
        description="the network to distil from: an ONNX file, the prefix of a saved network, a GluonCV name (with its "
        "published weights) or, for finetune, `dense`: the experiment's own dense network",
    )
    teacher_weight: float = Field(0.5, gt=0, le=1, description="weight of the teacher's part of the loss, in (0, 1]")
    teacher_temperature: float = Field(
        1.0, gt=0, le=1000, description="what both networks' outputs are divided by before they are compared, above 0"
    )

    _lists = field_validator("step_epochs", mode="before")(listed)

    def is_file(self, key: str) -> bool:
        """Whether the teacher is a file: it may also be a GluonCV name, or `dense`."""
        if self.teacher in (None, "dense"):
            return False
        return "/" in self.teacher or is_onnx(self.teacher) or network_files(self.teacher)[0].is_file()

    @property
    def all_epochs(self) -> int:
        """The length of the training in epochs."""
        return self.epochs

    def mistakes(self) -> Iterator[str]:
        """See `Options`."""
        n, steps, warmup = self.all_epochs, list(self.step_epochs), f"warmup_epochs: {self.warmup_epochs:g}"
        moved = {key for key, field in type(self).model_fields.items() if getattr(self, key) != field.default}
        if 0 < n < self.warmup_epochs:
            yield f"{warmup} is longer than the whole training; set it to at most {n} epochs"
        if self.schedule == "step" and not steps:
            fix = "set it to the epochs after which the rate falls, such as [30, 60, 90]"
            yield f"schedule: step needs step_epochs; {fix}"
        for key in sorted(moved & {"step_epochs", "step_factor"}) if self.schedule == "cosine" else ():
            yield f"{key} is for schedule: step, but the schedule is cosine; set schedule to step"
        if any(a >= b for a, b in zip(steps, steps[1:])):
            yield f"step_epochs: {steps} must be increasing"
        if steps and 0 < n <= steps[-1]:
            yield f"step_epochs: {steps} goes beyond the training, which ends after epoch {n}"
        if steps and steps[0] < self.warmup_epochs:
            yield f"step_epochs: {steps} begins before the end of {warmup}"
        for key in sorted(moved & {"teacher_weight", "teacher_temperature"}) if self.teacher is None else ():
            yield f"{key}: {getattr(self, key):g} has no effect without a teacher; set teacher to a network"


class Train(Recipe):
    """Training of the dense network."""

    last_gamma_zero: bool = Field(
        False, description="true: the last batch norm of every residual branch starts with scales of 0"
    )

    def mistakes(self) -> Iterator[str]:
        """See `Options`."""
        yield from super().mistakes()
        if self.teacher == "dense":
            yield "teacher: dense is the very network being trained here; name another, or set finetune.teacher"


class Finetune(Recipe):
    """Training of the pruned network: the keys of `train`, and those that make comparisons between methods fair."""

    epochs: int = Field(0, ge=0, le=10**5, description="passes over the training images, 0 or more")
    extra_epochs: int = Field(
        0, ge=0, le=10**5, description="epochs in addition to `epochs`, for comparisons at equal numbers of images"
    )
    includes_pruning: bool = Field(
        False,
        description="true: the images that pruning used are deducted from the epochs, in whole batches, so that every "
        "method sees the same number in total; with schedule step, the rate then falls after the same fractions of "
        "them",
    )
    from_scratch: bool = Field(
        False, description="true: train the pruned network from new weights, to see what inherited ones are worth"
    )

    @property
    def all_epochs(self) -> int:
        """The length of the training in epochs."""
        return self.epochs + self.extra_epochs
