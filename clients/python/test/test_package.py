"""The package as it is published: built, installed where nothing else is, and used."""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

from support import PACKAGE, Server

PROGRAM = """
import asyncio, sys
from event_pipeline import AsyncEventPipeline, EventPipeline
with EventPipeline(sys.argv[1]) as events:
    events.publish({"event_type": "timer_tick", "source": "me"})
async def main():
    async with AsyncEventPipeline(sys.argv[1]) as events:
        async for event in events.subscribe(last=1, until="9999-01-01T00:00:00Z"):
            print(event.id)
asyncio.run(main())
"""


def test_the_built_package_works_where_nothing_else_is_installed(server: Server, tmp_path: Path) -> None:
    def run(*command: str | Path) -> str:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout

    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path / "dist", PACKAGE)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert len(list((tmp_path / "dist").glob("*.tar.gz"))) == 1
    names = zipfile.ZipFile(wheel).namelist()
    assert "event_pipeline/py.typed" in names and not [name for name in names if "test" in name]
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv/bin/python"
    run(python, "-m", "pip", "install", "--quiet", wheel)
    # Without the folder of the sources on the path.
    assert run(python, "-I", "-c", PROGRAM, server.url) == "evt_000000000001\n"
    modules = run(python, "-m", "pip", "list", "--format=freeze").lower()
    assert "httpx2==" in modules and "websockets==" in modules and "pytest" not in modules
