"""Prepare data sets: ImageNet's archives or your own class folders as RecordIO, Caltech-256, or the smoke sets.

A killed run resumes when the same command is given again. docs/data.md describes what is written.
"""

import argparse
import json
from pathlib import Path

from gcp import command as command_line
from gcp import errors


def run(argv: list) -> None:
    """Parse the arguments, call the verb's function, and print what was done as JSON."""
    parser = command_line.Parser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=command_line.Parser)

    def verb(function, text: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(function.__name__, help=text)
        sub.set_defaults(function=function)
        return sub

    path, count = {"type": Path}, {"type": command_line.natural, "metavar": "N"}
    sub = verb(imagenet, "convert ILSVRC2012's archives to train.rec and val.rec")
    archives = "folder with ILSVRC2012_img_train.tar, _img_val.tar and _devkit_t12.tar.gz"
    sub.add_argument("--tar-dir", required=True, metavar="DIR", help=archives, **path)
    truth = "instead of the devkit: the class (n01440764) of validation image 1, 2, ..., one per line"
    sub.add_argument("--ground-truth", metavar="FILE", help=truth, **path)
    add_encoding(sub)
    for what, things in {"classes": "classes", "train": "train images", "val": "val images"}.items():
        subset = f"for a subset: its number of {things}; sizes and checksums are then not checked"
        sub.add_argument(f"--expect-{what}", help=subset, **count)

    sub = verb(folder, "convert class folders train/ and val/ (or test/) to .rec files")
    sub.add_argument("--root", required=True, metavar="DIR", help="folder with train/ and val/ or test/", **path)
    add_encoding(sub)

    sub = verb(caltech256, "unpack Caltech-256")
    sub.add_argument("--tar", required=True, metavar="FILE", help="256_ObjectCategories.tar", **path)
    sub.add_argument("--out", required=True, metavar="DIR", help="folder for 256_ObjectCategories", **path)
    sub.add_argument("--expect-images", default=30607, help="number of images of a subset (default 30607)", **count)

    verb(smoke, "draw the tiny image sets of configs/smoke.yaml that do not exist yet")

    args = parser.parse_args(argv)
    print(json.dumps(args.function(args), indent=1))


def add_encoding(sub: argparse.ArgumentParser) -> None:
    """Add the options for where .rec files are written and how their images are encoded."""
    sub.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the .rec files and classes.txt")
    positive = command_line.positive(int)
    most = "reduce the short sides of images to at most this (default 480)"
    sub.add_argument("--resize", type=positive, default=480, metavar="N", help=most)
    made = "quality of the JPEGs that are written (default 95)"
    sub.add_argument("--quality", type=positive, default=95, metavar="Q", help=made)
    sub.add_argument("--raw", action="store_true", help="keep the original bytes of the image files instead")
    skip = "skip: leave the image out, and report it"
    sub.add_argument("--on-bad-image", choices=["error", "skip"], default="error", help=skip)
    workers = {"type": command_line.natural, "default": 0, "metavar": "N"}
    sub.add_argument("--workers", help="threads (default: one per physical core)", **workers)


def encoding(args: argparse.Namespace):
    """The `prepare.Encoding` that the arguments give. UserError: the quality is out of range."""
    from gcp.data import prepare

    if args.quality > 100:
        raise errors.UserError(f"--quality {args.quality}: should be 1 to 100")
    return prepare.Encoding(None if args.raw else args.resize, args.quality)


def imagenet(args: argparse.Namespace) -> dict:
    """Convert ImageNet's archives to RecordIO."""
    from gcp.data import prepare

    given = {what: getattr(args, f"expect_{what}") for what in ("classes", "train", "val")}
    expected = prepare.Expected(**{what: n for what, n in given.items() if n is not None})
    return prepare.prepare_imagenet(
        args.tar_dir,
        args.out,
        encoding(args),
        expected if any(given.values()) else None,
        args.ground_truth,
        args.on_bad_image == "skip",
        args.workers,
    )


def folder(args: argparse.Namespace) -> dict:
    """Convert class folders to RecordIO."""
    from gcp.data import prepare

    return prepare.prepare_folder(args.root, args.out, encoding(args), args.on_bad_image == "skip", args.workers)


def caltech256(args: argparse.Namespace) -> dict:
    """Unpack Caltech-256."""
    from gcp.data import prepare

    return prepare.unpack_caltech(args.tar, args.out, args.expect_images)


def smoke(args: argparse.Namespace) -> dict:
    """Draw the image sets of configs/smoke.yaml that do not exist yet."""
    from gcp.data import smoke

    return {"drawn": [str(folder) for folder in smoke.draw_missing()]}


if __name__ == "__main__":
    command_line.main(run)
