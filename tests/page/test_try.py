import os, time
import pytest
from playwright.sync_api import sync_playwright
from tests.page_states import fill_busy, fill_broken
from tests.roles import Kind

OUT = "/tmp/page-shots"


def test_shots(database, serve):
    os.makedirs(OUT, exist_ok=True)
    state = os.environ.get("STATE", "busy")
    if state == "busy":
        fill_busy(database)
    if state == "broken":
        fill_broken(database)
    served = serve(database)
    if state == "broken":
        served.wrong["broker"] = "Redis is away"
    print(served.get("/overview.json")[2][:3000])
    with sync_playwright() as p:
        b = p.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            for name, size in (("desktop", (1280, 800)), ("phone", (390, 844))):
                c = b.new_context(
                    viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, device_scale_factor=1
                )
                page = c.new_page()
                page.on("console", lambda m: print("CONSOLE", m.type, m.text))
                page.on("pageerror", lambda e: print("ERROR", e))
                page.goto(served.url)
                page.wait_for_function("document.documentElement.dataset.level != 'unknown'")
                page.wait_for_timeout(300)
                print(name, page.evaluate("[document.documentElement.scrollWidth, innerWidth]"))
                page.screenshot(path=f"{OUT}/{state}-{scheme}-{name}.png", full_page=True)
                c.close()
        b.close()
