"""Every way in which a configuration's files are replaced is noticed."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from xds_server.app import watch
from xds_server.app.watch import changes
from xds_server.config import Look

MESH = "mesh: m\nresources: [{path: own}, {path: sub/one.yaml}]\n"


class Seen:
    def __init__(self) -> None:
        self.count = 0
        self._more = asyncio.Event()

    async def follow(self, found: AsyncGenerator[None, None]) -> None:
        async with aclosing(found):
            async for _ in found:
                self.count += 1
                self._more.set()

    async def one(self) -> None:
        async with asyncio.timeout(10.0):
            await self._more.wait()
        self._more.clear()


@asynccontextmanager
async def following(path: Path) -> AsyncIterator[Seen]:
    seen, stop = Seen(), asyncio.Event()
    look = Look(path)
    task = asyncio.create_task(seen.follow(changes(look, look(), stop)))
    try:
        yield seen
    finally:
        stop.set()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(watch, "LOOK_AGAIN_MS", 200)
    (tmp_path / "own").mkdir()
    (tmp_path / "sub").mkdir()
    (tmp_path / "own/a.yaml").write_text("a")
    (tmp_path / "sub/one.yaml").write_text("b")
    (tmp_path / "mesh.yaml").write_text(MESH)
    return tmp_path


async def test_files_folders_and_the_mesh_itself_are_followed(folder: Path) -> None:
    async with following(folder / "mesh.yaml") as seen:
        for act in (
            lambda: (folder / "own/a.yaml").write_text("a2"),
            lambda: (folder / "own/new.yaml").write_text("c"),
            lambda: (folder / "own/new.yaml").unlink(),
            lambda: (folder / "sub/one.yaml").write_text("b2"),
            lambda: (folder / "mesh.yaml").write_text(MESH + "# x\n"),
        ):
            act()
            await seen.one()


async def test_what_is_replaced_or_linked_is_followed(folder: Path) -> None:
    async with following(folder / "mesh.yaml") as seen:
        (folder / "new").write_text("b3")
        (folder / "new").replace(folder / "sub/one.yaml")
        await seen.one()
        (folder / "elsewhere").mkdir()
        (folder / "elsewhere/a.yaml").write_text("far")
        (folder / "link").symlink_to(folder / "elsewhere/a.yaml")
        (folder / "link").replace(folder / "own/a.yaml")
        await seen.one()
        (folder / "elsewhere/a.yaml").write_text("far2")  # nothing tells of that
        await seen.one()


async def test_a_place_that_a_change_names_is_followed_from_then_on(folder: Path) -> None:
    async with following(folder / "mesh.yaml") as seen:
        (folder / "mesh.yaml").write_text(MESH.replace("own", "later/own"))
        await seen.one()
        (folder / "later/own").mkdir(parents=True)
        (folder / "later/own/a.yaml").write_text("x")
        await seen.one()
        (folder / "later/own/a.yaml").write_text("y")
        await seen.one()


async def test_what_is_no_part_of_the_configuration_is_not_noticed(folder: Path) -> None:
    async with following(folder / "mesh.yaml") as seen:
        for name in ("own/.a.yaml.swp", "own/readme.txt", "sub/other.yaml", "x"):
            (folder / name).write_text("?")
        (folder / "own/a.yaml").write_text("a")  # as before
        (folder / "sub/one.yaml").write_text("last")
        await seen.one()
        assert seen.count == 1
