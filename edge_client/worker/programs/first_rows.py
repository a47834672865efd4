# SPDX-License-Identifier: Apache-2.0
"""The first rows of a node's data, read as the worker reads them: `python -m edge_client.worker.programs.first_rows
SECTION`, for `fedkrso doctor`.

What the task wants of a label only the run's plan says; here a row has its columns, and its text is text.
"""

from __future__ import annotations

import itertools
import sys

import msgspec

from edge_client.worker.data.reading import check_row, rows_of
from fedcore.config.sections import DataSection
from fedcore.errors import DataError

__all__ = ["main"]

_MOST = 1000


def main(section: DataSection) -> str:
    """What was read, in words.

    Raises:
        DataError: As in training.
    """
    count = 0
    for place, row in itertools.islice(rows_of(section), _MOST):
        check_row(row, place, section)
        count += 1
    if not count:
        raise DataError("there are no rows", place=section.source, remedy="training needs at least one example")
    return f"the first {count} rows can be read" if count == _MOST else f"{count} rows can be read"


if __name__ == "__main__":
    try:
        sys.stdout.write(main(msgspec.json.decode(sys.argv[1], type=DataSection)) + "\n")
    except DataError as error:
        sys.stderr.write(msgspec.json.encode((error.message, error.place, error.remedy)).decode() + "\n")
        sys.exit(error.exit_code)
