"""What tests and benchmarks ask of the page in a browser."""

from __future__ import annotations

import re

from playwright.async_api import Locator, Page, expect

TIMEOUT_MS = 20_000


def node(page: Page, name: str) -> Locator:
    """A node in the picture; it may stand there more than once."""
    return page.locator(f'#picture [data-node="{name}"]')


async def connected(page: Page) -> None:
    await expect(page.locator("#connection")).to_have_text("connected", timeout=TIMEOUT_MS)


async def shows(page: Page, *names: str) -> None:
    """All of these are online in the picture."""
    for name in names:
        await expect(node(page, name).first).to_have_attribute(
            "aria-label", re.compile(rf"{re.escape(name)}: online"), timeout=TIMEOUT_MS
        )
