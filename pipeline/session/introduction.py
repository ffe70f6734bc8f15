"""What a session says of itself once it is up."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.session.session import Session


def introductions(session: Session) -> Iterator[str]:
    """A line for each stage: what its workers run on, and their pids; and a line for each of its notices."""
    for stage in (session.loading.stage, session.batches.infer):
        # Loaders are alike: one speaks for all.
        notes = stage.notes[:1] if stage is session.loading.stage else stage.notes
        yield f"stage {stage.name} is up: {' | '.join(notes)}, pids {', '.join(map(str, stage.pids))}"
        for notice in stage.notices:
            yield f"stage {stage.name}: {notice}"
