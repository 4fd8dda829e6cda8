"""A process that saves annotations and says of each when it is saved, until it is killed. Not a test.

Usage: python projects_writer.py DATABASE SEED
       python projects_writer.py DATABASE FIRST PROJECT IMAGE COUNT    saves COUNT from number FIRST on, and ends
"""

import io
import sys

import numpy as np
from PIL import Image

from anysam.masks import encode_rle
from anysam.serve.projects import annotations, operations
from anysam.serve.projects.database import open_projects
from anysam.serve.projects.items import check_annotation

SIZE = (120, 160)


def mask_of(number):
    """A mask that follows from the number of an annotation, of many short runs so that it fills pages."""
    return np.random.default_rng(number).random(SIZE) > 0.5


def item_of(number):
    return check_annotation(f"{number:032x}", encode_rle(mask_of(number)), SIZE, label=f"number {number}")


def picture(seed):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def save_some(database, first, project, image, count):
    projects = open_projects(database)
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(first, first + count):
        annotations.put_annotation(projects, project, image, item_of(number))
    projects.close()


def main(database, seed):
    projects = open_projects(database)
    project = operations.create_project(projects, f"seed {seed}").id
    print("project", project, flush=True)
    image, _ = operations.add_image(projects, project, picture(seed), "a.png")
    print("image", image.id, flush=True)
    number = 0
    while True:
        if number % 5 == 4:  # several at once: whole or not at all
            batch = [item_of(number + i) for i in range(3)]
            annotations.change_batch(projects, project, image.id, batch, [])
            for item in batch:
                print("saved", int(item.id, 16), flush=True)
            number += 3
        else:
            annotations.put_annotation(projects, project, image.id, item_of(number))
            print("saved", number, flush=True)
            number += 1


if __name__ == "__main__":
    if len(sys.argv) > 3:
        save_some(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4], int(sys.argv[5]))
    else:
        main(sys.argv[1], int(sys.argv[2]))
