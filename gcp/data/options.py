"""The section `data` of a configuration: which images, at which size, and how they are divided."""

from __future__ import annotations

# Optional, not `X | None`: pydantic evaluates the annotations, and Python 3.9 cannot evaluate that form.
from typing import Annotated, ClassVar, Dict, Literal, Optional, Set, Tuple

from pydantic import Field, field_validator, model_validator

from gcp.options import Options, listed


class Data(Options):
    """Which images, at which size, and how the training images are divided."""

    # What `root` should be where a data set cannot do without.
    ROOTS: ClassVar[Dict[str, str]] = {
        "folder": "what holds train/ and test/, or train.rec and test.rec",
        "imagenet": "what holds train.rec and val.rec, as scripts/prepare.py writes them, or train/ and val/",
        "caltech256": "256_ObjectCategories.tar, or the folder that it unpacks to",
    }

    name: Annotated[
        Literal["digits", "fashion_mnist", "folder", "imagenet", "caltech256"], Field(description="the data set")
    ]
    root: Annotated[
        Optional[str],
        Field(min_length=1, description="the folder that holds the data set's files; caltech256: or the tar"),
    ] = None
    input: Annotated[
        Tuple[int, int, int], Field(description="a list of channels, height, width, such as [3, 32, 32]")
    ] = (3, 32, 32)
    batch: Annotated[int, Field(ge=1, description="images in a training batch")] = 64
    n_train: Annotated[
        Optional[int], Field(ge=2, description="cap on the training images, those held out for validation included")
    ] = None
    validation: Annotated[
        float, Field(ge=0.01, le=0.5, description="fraction of the training images held out, in [0.01, 0.5]")
    ] = 0.1
    augment: Annotated[
        Literal["none", "crop", "crop_flip", "imagenet"], Field(description="random changes to training images")
    ] = "none"
    per_class: Annotated[
        int, Field(ge=2, description="caltech256: training images of a class, those held out for validation included")
    ] = 60
    split_file: Annotated[
        Optional[str],
        Field(
            min_length=1,
            description="caltech256: .json or .csv file of the split, read if there, else written; {seed} in "
            "it stands for the seed",
        ),
    ] = None
    on_bad_image: Annotated[
        Literal["error", "skip"], Field(description="images that cannot be decoded: an error, or left out and counted")
    ] = "error"
    workers: Annotated[int, Field(ge=0, description="threads that decode images; 0: one per physical core")] = 0

    def uncounted(self) -> Set[str]:
        """Where the files of a well-known data set lie decides nothing; what a folder holds only its path says."""
        return {"workers"} if self.name == "folder" else {"workers", "root"}

    _lists = field_validator("input", mode="before")(listed)

    @field_validator("input")
    @classmethod
    def _check_input(cls, value: tuple[int, int, int]) -> tuple[int, int, int]:
        if value[0] != 3 or min(value) < 1:
            raise ValueError("should be three channels and a positive height and width")
        return value

    @model_validator(mode="after")
    def _check(self) -> Data:
        if self.name in self.ROOTS and self.root is None:
            raise ValueError(f"name: {self.name} needs a root; set data.root to {self.ROOTS[self.name]}")
        if self.name != "caltech256":
            for key in ("per_class", "split_file"):
                if getattr(self, key) != type(self).model_fields[key].default:
                    raise ValueError(
                        f"{key} is for name: caltech256, and {self.name} brings its own test images; "
                        f"take data.{key} away"
                    )
        if self.split_file is not None and not self.split_file.lower().endswith((".json", ".csv")):
            raise ValueError(f"split_file: {self.split_file!r} should end in .json or .csv")
        return self
