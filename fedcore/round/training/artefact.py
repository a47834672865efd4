# SPDX-License-Identifier: Apache-2.0
"""What a method says of the run artefact that it asks for: a file that is made once, before the first round, and that
all of a run have the same bytes of."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ArtefactKind"]


@dataclass(frozen=True)
class ArtefactKind:
    """A sort of file that runs of a method need before a model is loaded.

    The coordinator has it made once, in a worker process, and publishes it; plans and the model digest name it by its
    SHA-256. How its content is read, its method's part of a plan says (`Training.read_artefact`).

    Attributes:
        name: What errors call it.
        maker: `package.module:function`, called in a worker only: with the path of the file to write and an
            `edge_client.worker.methods.artefact.ArtefactSources`.
        from_text: Whether it is made from text, so that the job has to have `[calibration]`.

    Example:
        >>> ArtefactKind("singular vectors", "outside.worker:write_vectors", from_text=False).from_text
        False
    """

    name: str
    maker: str
    from_text: bool = True
