from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest
from support import QUICK, Server, await_true

from event_pipeline import EventPipeline
from event_pipeline.logging import EventPipelineHandler


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    logger = logging.Logger("quiz")
    yield logger
    for handler in logger.handlers:
        handler.close()


def test_a_record_becomes_an_event(server: Server, logger: logging.Logger) -> None:
    with EventPipeline(server.url) as events:
        logger.addHandler(EventPipelineHandler(events, source="quiz_engine"))
        logger.info("not this one")
        try:
            _ = 1 / 0
        except ZeroDivisionError:
            logger.exception("no score for %s", "ada", extra={"session_id": "exam-08", "user_id": "ada"})
        (event,) = await_true("it is stored", lambda: list(events.query(event_types="error_occurred")))
    assert (event.source, event.session_id, event.user_id) == ("quiz_engine", "exam-08", "ada")
    assert event.payload["message"] == "no score for ada" and event.payload["level"] == "ERROR"
    assert "ZeroDivisionError" in event.payload["exception"]


def test_a_dead_server_delays_nobody_and_the_oldest_records_are_dropped(server: Server, logger: logging.Logger) -> None:
    server.end()
    with EventPipeline(server.url, backoff=QUICK) as events:
        handler = EventPipelineHandler(events, source="quiz_engine", capacity=5)
        logger.addHandler(handler)
        for n in range(12):
            logger.error("record %d", n)
        assert handler.dropped == 7
        server.start()
        stored = await_true("five are stored", lambda: len(list(events.query())) == 5 and list(events.query()))
    assert [event.payload["message"] for event in stored] == [f"record {n}" for n in range(11, 6, -1)]


def test_records_at_the_end_of_a_program_are_sent(server: Server) -> None:
    program = f"""
import logging
from event_pipeline import EventPipeline
from event_pipeline.logging import EventPipelineHandler
logging.getLogger().addHandler(EventPipelineHandler(EventPipeline({server.url!r}), source="quiz_engine"))
for n in range(100): logging.error("last words %d", n)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)
    assert [event["payload"]["message"] for event in server.stored()] == [f"last words {n}" for n in range(100)]
