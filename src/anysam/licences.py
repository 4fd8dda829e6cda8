"""Licences of weights: refuse those that the user has not allowed, and say the unusual ones once. Imports no torch.

ANYSAM_ALLOW, read at each call: licences with commas between, for example "apache-2.0,mit". Without it, and without an
explicit choice, every licence is allowed.
"""

import os
import re
import sys
from collections.abc import Iterable

from anysam.catalogue import RESOURCES, VARIANTS
from anysam.errors import LicenceError, OptionError
from anysam.home import home

# Beside the catalogue's own: what people allow in general, and what weights of their own may be under.
_COMMON = (
    "Apache-2.0 MIT BSD-2-Clause BSD-3-Clause ISC Unlicense CC0-1.0 CC-BY-4.0 CC-BY-SA-4.0 CC-BY-NC-4.0 "
    "CC-BY-NC-SA-4.0 MPL-2.0 LGPL-2.1 LGPL-3.0 GPL-2.0 GPL-3.0 AGPL-3.0"
).split()

_NON_COMMERCIAL = "it permits non-commercial use only"
_TERMS = {
    "llama-not-stated": "the file is LLaMA's tokenizer, and the repository that offers it states no licence for it",
    "agpl-3.0": "who passes on what is built on it, or offers it over a network, gives its source on the same terms",
    "s-lab-1.0": _NON_COMMERCIAL,
}

# Licences said by this process, where the user's home cannot keep a note of it.
_said: set[str] = set()


def allowed_licences(allow: str | Iterable[str] | None) -> frozenset[str] | None:
    """The licences that may be used, in the form that `licence_id` gives; None for all.

    allow: names, or one text with commas between; None takes ANYSAM_ALLOW. Raises OptionError for unknown names.
    """
    source = "allow"
    if allow is None:
        allow, source = os.environ.get("ANYSAM_ALLOW", "").strip() or None, "ANYSAM_ALLOW"
    if allow is None:
        return None
    names = [name.strip() for name in (allow.split(",") if isinstance(allow, str) else allow)]
    listed = catalogue_licences()
    known = {licence_id(name) for name in (*listed, *_COMMON)}
    unknown = [name for name in names if licence_id(name) not in known]
    if unknown or not names:
        what = f"names the unknown licence {unknown[0]!r}" if unknown else "names no licence"
        raise OptionError(f"{source} {what}; the models' weights and files are under {', '.join(listed)}.")
    return frozenset(map(licence_id, names))


def licence_id(name: str) -> str:
    """A licence's name as it is compared: in lower case, without spaces, brackets, "-only" and "-or-later"."""
    return re.sub(r"(?<=\d)-(only|or-later)$", "", re.sub(r"[\s_]+", "-", re.sub(r"[()]", "", name).strip().lower()))


def catalogue_licences() -> tuple[str, ...]:
    """The licences of the catalogue's weights and other files, each once, in its order."""
    weights = [variant.weights_licence for variant in VARIANTS]
    return tuple(dict.fromkeys(weights + [resource.licence for resource in RESOURCES]))


def require_allowed(model: str, licence: str, allowed: frozenset[str] | None, subject: str | None = None) -> None:
    """Raise LicenceError if the weights of `model` are under a licence that is not allowed (see allowed_licences).

    subject: what is under the licence, in words; by default the weights of the model.
    """
    if allowed is None or licence_id(licence) in allowed:
        return
    more = ",".join([*sorted(allowed), licence_id(licence)])
    what = f"The weights of {model} are" if subject is None else f"{subject[0].upper()}{subject[1:]} is"
    raise LicenceError(
        f"{what} under the licence {licence!r}, and allowed are only {', '.join(sorted(allowed))}; "
        f"to accept it, write --allow {more} or set ANYSAM_ALLOW={more}."
    )


def announce_licence(model: str, licence: str, subject: str | None = None) -> None:
    """Print on stderr, once for each user and licence, that weights are under AGPL or for non-commercial use.

    subject: what is under the licence, in words; by default the weights of the model.

    A note in the home folder remembers it; where none can be written, it is said once in a process. Never fails.
    """
    name = licence_id(licence)
    terms = _TERMS.get(name) or (_NON_COMMERCIAL if re.search(r"-nc\b|non-?commercial", name) else None)
    if terms is None or name in _said:
        return
    _said.add(name)
    note = home() / "licences" / re.sub(r"[^a-z0-9.-]", "_", name)
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.touch(exist_ok=False)  # of two processes at once, one makes it
    except FileExistsError:
        return
    except OSError:
        pass  # said again by the next process: better than never
    if sys.stderr is not None:
        what = f"the weights of {model} are" if subject is None else f"{subject} is"
        print(f"anysam: {what} under {licence}: {terms}. This is said once.", file=sys.stderr)
