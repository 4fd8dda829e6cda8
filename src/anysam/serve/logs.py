"""What the server writes to its log: a line for each request, and where a fault came from. Never what a user sent."""

import logging
import traceback

LOGGER = "anysam.serve"
_FRAMES = 6


def log_request(request_id: str, method: str, route: str, status: int, seconds: float) -> None:
    """route: as it was declared, "/v1/images/{image_id}", so that no id of an image is told."""
    logging.getLogger(LOGGER).info("%s %s %s %d %.0f ms", request_id, method, route, status, 1000 * seconds)


def log_fault(request_id: str | None, error: BaseException) -> None:
    """Which kind of error it was and where, without its message, which may quote what a user sent."""
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
    places = " < ".join(f"{frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in reversed(frames))
    logging.getLogger(LOGGER).error("%s fault %s at %s", request_id or "-", type(error).__name__, places)
