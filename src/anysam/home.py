"""The folder of what this package keeps on a machine. Imports no torch."""

import os
from pathlib import Path

from platformdirs import user_cache_path


def home() -> Path:
    """The folder of what this package keeps: `ANYSAM_HOME`, else the platform's user cache. It may not exist yet."""
    chosen = os.environ.get("ANYSAM_HOME", "")
    return Path(os.path.expanduser(chosen)) if chosen else user_cache_path("anysam", appauthor=False)
