"""A real headless Chromium, driven by Playwright; no browser is downloaded, the machine's own is used."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from playwright.async_api import Browser, Page, async_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")


def chromium_path() -> str:
    """The machine's Chromium.

    Raises:
        RuntimeError: there is none; says how to get it.
    """
    for name in NAMES:
        path = shutil.which(name)
        if path is not None:
            return path
    raise RuntimeError(
        f"the page is tested in a real browser, and there is none of {', '.join(NAMES)}: "
        "apt-get install chromium"
    )


@asynccontextmanager
async def chromium(arguments: Sequence[str] = ()) -> AsyncIterator[Browser]:
    """A browser without windows."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=chromium_path(), args=[*arguments]
        )
        try:
            yield browser
        finally:
            await browser.close()


class Complaints:
    """What a page's console and policies complained of, and which hosts it asked for something."""

    def __init__(self, page: Page) -> None:
        self.words: list[str] = []
        self.urls: list[str] = []
        page.on("console", lambda said: self._said(said.type, said.text))
        page.on("pageerror", lambda error: self.words.append(str(error)))
        page.on("request", lambda request: self.urls.append(request.url))
        page.on("websocket", lambda socket: self.urls.append(socket.url))

    def _said(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.words.append(text)
