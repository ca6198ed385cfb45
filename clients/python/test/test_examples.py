"""The examples, as a user runs them."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from support import DEADLINE, PACKAGE, Server, await_true

from event_pipeline import EventPipeline

Run = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def example(server: Server) -> Iterator[Run]:
    running: list[subprocess.Popen[str]] = []

    def run(name: str, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(PACKAGE / "examples" / name), server.url, *arguments]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return running[-1]

    yield run
    for process in running:
        process.kill()
        process.communicate()


def test_the_timers_of_a_class_outlive_a_restart_of_the_server(server: Server, example: Run) -> None:
    timers = example("timer.py", "--sessions=8", "--seconds=60", "--tick=0.02", "--warn-at=10")
    with EventPipeline(server.url) as events:
        await_true("ticks arrive", lambda: events.stats()["total_events"] > 100)
        server.end(signal.SIGKILL)
        server.start()
        out, _ = timers.communicate(timeout=DEADLINE)
        assert timers.returncode == 0 and "waiting" in out and "496 events stored" in out
        for session in range(8):
            mine = list(events.query(session_id=f"exam-{session:02}", oldest_first=True))
            ticks = [e.payload["remaining_seconds"] for e in mine if e.event_type != "timer_warning"]
            assert ticks == list(range(60, -1, -1))
            assert (mine[0].event_type, mine[-1].event_type) == ("timer_started", "quiz_timeout")


def test_a_grader_that_is_killed_leaves_no_answer_ungraded_and_none_graded_twice(server: Server, example: Run) -> None:
    graders = [example("grader.py") for _ in range(2)]
    for grader in graders:
        assert grader.stdout is not None and grader.stdout.readline() == "grading\n"
    with EventPipeline(server.url) as events, events.publisher() as answers:
        for n in range(150):
            payload = {"question_id": f"q{n % 5 + 1}", "answer": "8" if n % 2 else "list"}
            answers.put(
                {"event_type": "answer_submitted", "source": "quiz", "session_id": f"s{n % 25}", "payload": payload}
            )
        answers.flush(DEADLINE)
        for grader in graders:  # Each of them is killed with answers in hand.
            assert grader.stdout is not None
            assert grader.stdout.readline().startswith("graded")
            grader.kill()
        example("grader.py")

        def grades() -> Counter[str]:
            return Counter(grade.payload["answer_id"] for grade in events.query(event_types="mastery_updated"))

        await_true("everything is graded", lambda: len(grades()) == 150)
        assert set(grades().values()) == {1}
        correct = sum(grade.payload["is_correct"] for grade in events.query(event_types="mastery_updated"))
        assert correct == 30
