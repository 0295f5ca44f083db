"""The pages behind a real nginx, under a name and a path of its own."""

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, expect

from lorarlhf.preferences.accounts import set_password
from lorarlhf.project.project import create
from tests.browser import nginx
from tests.browser.projects import part, ready
from tests.ports import free_port

PASSWORD = "quiet harbour 7"
NAME = "rate.localhost"  # browsers find every name below localhost on this machine
CONFIG = """
{user} daemon off; pid {folder}/pid; error_log {folder}/error.log; events {{ }}
http {{
    access_log off;
    client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
    uwsgi_temp_path {folder}; scgi_temp_path {folder};
    proxy_buffering off;
    proxy_set_header Host $http_host;
    proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
    server {{ listen 127.0.0.1:{kept}; location /rate {{ proxy_pass {server}; }} }}
    server {{ listen 127.0.0.1:{cut}; location /rate/ {{ proxy_pass {server}/; }} }}
}}
"""


@contextlib.contextmanager
def proxy(folder: Path, server: str) -> Iterator[tuple[int, int]]:
    """A running nginx; the port at which it keeps the path, and the one at which it cuts it off."""
    program = nginx.find()
    assert program, "No nginx was found; `make test` provides one."
    kept, cut = free_port(), free_port()
    user = "user root;" if os.geteuid() == 0 else ""
    config = folder / "nginx.conf"
    config.write_text(CONFIG.format(user=user, folder=folder, kept=kept, cut=cut, server=server))
    words = [program, "-p", str(folder), "-c", str(config), "-e", str(folder / "error.log")]
    process = subprocess.Popen(words)
    try:
        for port in (kept, cut):
            wait_for(port, process)
        yield kept, cut
    finally:
        process.terminate()
        process.wait()


def wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    for _ in range(600):
        assert process.poll() is None, "nginx ended"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise AssertionError("nginx did not answer")


def log_in(page: Page) -> None:
    page.get_by_label("Name").fill("ann")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()


def test_the_pages_behind_a_proxy(open_page: Any, serve: Any, tmp_path: Path) -> None:
    project = create(tmp_path / "project")
    store = project.store()
    set_password(store, "ann", PASSWORD, "owner")
    for number in range(3):
        store.add_item(f"Question {number}?", [("Red.", "base"), ("Blue.", "runs/1")])
    words = ("--no-model", "--allowed-host", NAME, "--root-path", "/rate/")
    server = serve(project.folder, *words)
    with proxy(tmp_path, server.url) as ports:
        for number, port in enumerate(ports):
            url = f"http://{NAME}:{port}/rate"
            page = open_page(url)
            expect(page).to_have_url(f"{url}/login")
            log_in(page)
            expect(page).to_have_url(f"{url}/")
            expect(part(page, "prompt")).to_have_text(f"Question {number}?")
            ready(page)
            page.keyboard.press("1")
            expect(part(page, "prompt")).to_have_text(f"Question {number + 1}?")
        page.get_by_role("link", name="History").click()
        expect(page).to_have_url(f"{url}/history")
        expect(page.locator("#history .rows > li")).to_have_count(2)
        page.get_by_role("button", name="Download votes").click()
        with page.expect_download() as file:
            page.get_by_role("link", name="Download 2 rows").click()
        assert Path(file.value.path()).read_text().count("\n") == 2
        assert {cookie["path"] for cookie in page.context.cookies()} == {"/rate"}
        page.get_by_role("button", name="Log out").click()
        expect(page).to_have_url(f"{url}/login")
        other = page.request.get(f"http://127.0.0.1:{port}/rate/", headers={"Host": "evil.example"})
        assert other.status == 421
        for page in open_page.opened:  # a page that is still open would ask a proxy that has ended
            page.close()
    assert [vote.rater for vote in store.votes()] == ["ann", "ann"]
