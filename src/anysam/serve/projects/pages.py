"""Listings a page at a time: at most so many rows, and what to ask for to go on after them.

What a page goes on after is a place in the listing's order that no row ever leaves, not a count of rows: what is added
or removed meanwhile neither repeats a row nor hides one.
"""

from collections.abc import Callable
from typing import Annotated

from fastapi import Query
from sqlalchemy import Connection, Row, Select

MOST_ROWS = 1000
_ANSWER_BYTES = 8 * 1024**2  # of a page, about
_FETCHED = 16  # rows at once

Limit = Annotated[int, Query(ge=1, le=MOST_ROWS, description="the most that one answer has; next goes on after them")]
AfterNumber = Annotated[int, Query(ge=0, le=2**63 - 1, description="next of the answer before")]


def read_page(connection: Connection, query: Select, limit: int, size: Callable[[Row], int]) -> tuple[list[Row], bool]:
    """The first rows of a query, and whether more follow: at most `limit`, fewer where they are large, at least one.

    size: of a row in an answer, in bytes, about. No more rows than these are in memory.
    """
    found: list[Row] = []
    taken = 0
    with connection.execution_options(yield_per=_FETCHED).execute(query.limit(limit + 1)) as rows:
        for row in rows:
            if len(found) == limit or taken > _ANSWER_BYTES:
                return found, True
            taken += size(row)
            found.append(row)
    return found, False
