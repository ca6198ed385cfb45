#!/usr/bin/env python3
"""Grades answers. Start as many as you like: they share the work, and an answer that one of them had in hand when it died
goes to another.

    python grader.py http://localhost:8001

An answer may come twice, so its grade is published under a key that is made of the answer's id: it is stored once.
"""

import argparse
import asyncio
import os

from event_pipeline import AsyncEventPipeline, Event, Gap, NewEvent

CORRECT = {"q1": "8", "q2": "list", "q3": "def", "q4": "True", "q5": "dict"}


def grade(answer: Event) -> NewEvent:
    given = answer.payload.get("answer")
    is_correct = given == CORRECT.get(str(answer.payload.get("question_id")))
    return NewEvent(
        "mastery_updated",
        "grader",
        answer.session_id,
        answer.user_id,
        {"answer_id": answer.id, "question_id": answer.payload.get("question_id"), "is_correct": is_correct},
        idempotency_key=f"grade-{answer.id}",
    )


async def main() -> None:
    parser = argparse.ArgumentParser(description="Grade answers, in a group.")
    parser.add_argument("url", nargs="?", default="http://localhost:8001")
    parser.add_argument("--group", default="graders")
    args = parser.parse_args()

    def tell(gap: Gap) -> None:
        print(f"answers are missing: {gap}", flush=True)

    async with (
        AsyncEventPipeline(args.url, key=os.environ.get("EVENT_PIPELINE_KEY")) as events,
        events.subscribe(group=args.group, event_types=["answer_submitted"], on_gap=tell) as answers,
    ):
        print("grading", flush=True)
        async for answer in answers:
            await events.publish(grade(answer))  # It is on the server's disk ...
            await answers.ack(answer)  # ... before the answer is confirmed.
            print(f"graded {answer.id}", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
