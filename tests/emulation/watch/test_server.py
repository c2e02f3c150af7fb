"""The web server of the watch page: what it answers, and to whom."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from emulation.commands import watch
from emulation.watch import serving
from emulation.watch.optional import load_serving
from peers.errors import InputError
from tests.support import synthetic_run
from tests.support.watched import append, event, reopen, served

TIMEOUT_S = 20


def get(url: str, **headers: str) -> tuple[int, str]:
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = synthetic_run.write(tmp_path / "run")
    reopen(made)
    return made


def test_the_stream_sends_everything_and_then_what_is_new(folder: Path) -> None:
    with served(folder) as url, urllib.request.urlopen(f"{url}events", timeout=TIMEOUT_S) as stream:
        first = json.loads(stream.readline().removeprefix(b"data: "))
        assert first["first"] and first["run"]["rounds"] == 10 and len(first["devices"]) == 4
        append(folder / "devices/d0/events.jsonl", event(20.0, "leaving", kind="leave"))
        for line in stream:
            if b'"left"' in line and b'"d0 leaves' in line:
                break
        assert "unsafe-eval" not in stream.headers["content-security-policy"]


def test_the_page_and_the_chart_library_come_from_this_server(folder: Path) -> None:
    with served(folder) as url:
        assert '<h2 id="feed-head">Events</h2>' in get(url)[1]
        assert all(
            get(f"{url}{name}")[0] == 200 for name in ("watch.js", "charts.js", "draw.js", "watch.css")
        )
        assert get(f"{url}plotly.min.js")[0] == 200
        assert get(f"{url}../scenario.toml")[0] == 404


def test_a_name_that_only_resolves_to_this_machine_is_refused(folder: Path) -> None:
    with served(folder) as url:
        assert get(url, Host="evil.example")[0] == 400


def test_with_a_token_every_request_needs_it(folder: Path) -> None:
    with served(folder, token="secret") as url:
        bare = url.partition("?")[0]
        for path in ("", "events", "watch.js", "?token=wrong", "?token=%C3%A9"):
            assert get(f"{bare}{path}")[0] == 403
        assert get(url)[0] == 200
        assert get(f"{bare}watch.js", Cookie="unweft_token=secret")[0] == 200


@pytest.mark.parametrize(
    ("host", "needed"),
    [("127.0.0.1", False), ("127.3.2.1", False), ("localhost", False), ("::1", False), ("0.0.0.0", True)],
)
def test_other_machines_need_a_token(host: str, needed: bool) -> None:
    assert bool(serving.new_token(host)) == needed


def test_a_port_that_is_taken_is_an_input_error_only_if_it_was_named() -> None:
    with serving.bind("127.0.0.1", 0) as taken:
        with pytest.raises(InputError, match=r"--port: cannot listen at 127\.0\.0\.1:.* allowed: "):
            serving.bind("127.0.0.1", taken.getsockname()[1])
        with serving.bind("127.0.0.1", None) as first, serving.bind("127.0.0.1", None) as second:
            assert first.getsockname() != second.getsockname()


def test_a_folder_without_a_run_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no run"):
        watch.watch(tmp_path)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Path:
        raise ImportError("plotly is not installed")

    monkeypatch.setattr("emulation.watch.server.chart_library", missing)
    with pytest.raises(InputError, match=r"plotly is not installed.*pip install 'unweft\[watch\]'"):
        load_serving()


def test_the_server_beside_a_run_ends_with_the_block_and_a_dead_server_ends_no_run(folder: Path) -> None:
    with serving.beside(folder) as url:
        assert get(url)[0] == 200
    with pytest.raises(urllib.error.URLError):
        get(url)
    assert (folder / serving.LOG).read_text() == ""
