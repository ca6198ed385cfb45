"""The blocks of Python in the documents run as they stand. One that follows events for ever has to print some."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import PACKAGE, ROOT, Server

DOCUMENTS = [file for file in (PACKAGE / "README.md", ROOT / "docs/clients.md") if file.exists()]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: file.name)
def test_the_examples_of_a_document_run(server: Server, document: Path) -> None:
    prelude, *blocks = re.findall(r"^```python\n(.*?)^```$", document.read_text(), re.DOTALL | re.MULTILINE)
    prelude = prelude.replace("http://localhost:8001", server.url)
    assert server.url in prelude and blocks
    subprocess.run([sys.executable, "-c", f"{prelude}\nevents.publish_all({SEED!r})"], check=True, timeout=30)
    running = [
        subprocess.Popen(
            [sys.executable, "-uc", prelude + block], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for block in blocks
    ]
    try:
        for process, block in zip(running, blocks, strict=True):
            try:
                out, error = process.communicate(timeout=2.5)
                assert process.returncode == 0 and (out or "print" not in block), error + block
            except subprocess.TimeoutExpired:
                process.kill()
                out, error = process.communicate()
                assert "for " in block and out and not error, error + block
    finally:
        for process in running:
            process.kill()
            process.communicate()


SEED = [
    {
        "event_type": "answer_submitted",
        "source": "quiz",
        "session_id": "exam-08",
        "user_id": "student-120",
        "payload": {"question_id": "q1", "answer": "8"},
    },
    {"event_type": "timer_tick", "source": "timer", "session_id": "exam-08", "payload": {"remaining_seconds": 271}},
]
