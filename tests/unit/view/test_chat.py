"""The chat between a page and a server: over HTTP and within one process, and when things fail."""

from __future__ import annotations

import json
import threading

import pytest
import uvicorn
from starlette.responses import JSONResponse

from activation_logging import open_store
from activation_logging.errors import SettingsError
from activation_logging.view.server_link import ServerLink
from tests.fixtures.scored_server import ScoredServer, scored_server
from tests.unit.view.conftest import HOSTILE, Pages

TOKENS, SCORES = ["It", " is", HOSTILE, "."], [0.1, 0.6, 0.99, 0.2]
ASK = json.dumps([{"role": "user", "content": "Who?"}])


@pytest.fixture
def server(tmp_path):
    return ScoredServer(TOKENS, SCORES, tmp_path / "chat.lmdb")


@pytest.fixture(params=["over HTTP", "within the process"])
def pages(request, server):
    if request.param == "over HTTP":
        with scored_server(server):
            yield Pages(server.path, server=ServerLink(server.base_url, "a key"))
    else:
        app = server.app()
        yield Pages(server.path, server=ServerLink("this server", "a key", app))
        app.state.writer.close()


def say(pages, **fields):
    answer = pages.post("chat/say", **{"messages": ASK, "model": "org/model", **fields})
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    return [json.loads(line) for line in answer.text.splitlines()]


def test_an_answer_comes_with_scores_and_its_place_in_the_store(pages, server):
    told = say(pages, probes="known,claims", logs="1")
    tokens = [one for line in told for one in line.get("tokens", ())]
    assert [one["text"] for one in tokens] == TOKENS
    assert told[0]["prompt"]["known"] == [0.875, "positive level-15"]
    scores = [one for line in told for one in line.get("scores", {}).get("claims", ())]
    assert [(at, score) for at, score, _ in scores] == list(enumerate(SCORES[:3]))
    assert "chatcmpl-1" in pages.get(told[-1]["stored"].removeprefix("/activations/"))
    with open_store(server.path) as store:
        assert next(iter(store.entries())).response == "".join(TOKENS)
    assert server.asked[0]["vllm_xargs"]["activation_scores"] == "known,claims"


def test_what_the_server_has(pages, server):
    answer = pages.client.get("/activations/chat/server").json()
    assert answer["models"] == ["org/model"]
    assert [one["name"] for one in answer["probes"]] == ["known", "claims"]
    server.probes = False
    answer = pages.client.get("/activations/chat/server").json()
    assert (answer["probes"], answer["logs"]) == ([], True)


def test_a_refusal_is_shown_plainly(pages, server):
    server.refuse = JSONResponse({"error": {"message": "no probe 'x'\u202e", "code": 400}}, 400)
    (told,) = say(pages)
    assert told == {"error": "the server says (HTTP 400): no probe 'x'\\u202e"}
    server.refuse = JSONResponse({"error": "Unauthorized"}, 401)
    assert "VLLM_API_KEY" in say(pages)[0]["error"]
    server.refuse = JSONResponse({"detail": [{"msg": "odd"}]}, 422)
    assert "odd" in say(pages)[0]["error"]


def test_a_bad_question_never_reaches_the_server(pages, server):
    answer = pages.post("chat/say", 400, messages="[]")
    assert "there is no question" in answer.json()["error"]
    pages.post("chat/say", 400, forged=True, messages=ASK)
    assert server.asked == []


def test_a_conversation_that_is_too_long_is_called_so(pages, server):
    """Fields come in parts, as the page's script sends them."""
    pages.client.get("/activations/static/view.css")
    token = pages.client.cookies["activations_form"]

    def send(text):
        messages = json.dumps([{"role": "user", "content": text}], ensure_ascii=False)
        parts = {"form_token": (None, token), "messages": (None, messages.encode())}
        return pages.client.post("/activations/chat/say", files=parts)

    assert "longer than 1,000,000 characters" in send("x" * 1_200_000).json()["error"]
    assert send("\u8a9e" * 400_000).status_code == 200


def test_the_key_is_nowhere_in_the_pages(pages):
    for where in ("chat", "chat/server"):
        assert "a key" not in pages.client.get(f"/activations/{where}").text


def test_a_server_that_is_gone(server, tmp_path):
    with scored_server(server):
        pages = Pages(server.path, server=ServerLink(server.base_url))
    answer = pages.client.get("/activations/chat/server")
    assert answer.status_code == 502
    assert "does not answer" in answer.json()["error"]
    assert "does not answer" in say(pages)[0]["error"]


def test_who_leaves_ends_the_answer(server):
    """A client that goes away in the middle of an answer, over a real socket."""
    import http.client
    from urllib.parse import urlencode

    server.tokens, server.scores, server.pause_s = ["x"] * 2000, [0.5] * 2000, 0.01
    app = server.app()
    pages = Pages(server.path, server=ServerLink("this server", None, app))
    config = uvicorn.Config(pages.app, log_level="error", lifespan="off", port=0)
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        thread.join(0.01)
    port = running.servers[0].sockets[0].getsockname()[1]
    connection = http.client.HTTPConnection("localhost", port, timeout=120)
    connection.request("GET", "/activations/static/view.css")
    first = connection.getresponse()
    cookie = first.getheader("set-cookie").partition(";")[0]
    first.read()
    body = urlencode({"form_token": cookie.partition("=")[2], "messages": ASK})
    headers = {"cookie": cookie, "content-type": "application/x-www-form-urlencoded"}
    connection.request("POST", "/activations/chat/say", body, headers)
    answer = connection.getresponse()
    assert json.loads(answer.readline())["tokens"]
    answer.close()
    connection.close()
    assert server.left.wait(120)
    running.should_exit = True
    thread.join(120)
    app.state.writer.close()


def test_an_answer_is_asked_again(path):
    pages = Pages(path, server=ServerLink("http://localhost:1"))
    with open_store(path) as store:
        key = next(iter(store))
    page = pages.get(f"chat?like={key}")
    assert "data-earlier" in page
    assert "checked" in page  # it had no messages, so its text is continued
    pages.get("chat?like=" + "0" * 64, status=404)


def test_without_a_server_the_page_says_what_to_do(path):
    assert "--server http://localhost:8000/v1" in Pages(path).get("chat")
    assert Pages(path).client.get("/activations/chat/server").status_code == 502


@pytest.mark.parametrize(
    "url", ["", "localhost:8000", "ftp://x/v1", "http://", "file:///etc/passwd", "http://u:p@h/v1",
            "http://h/v1?x=1"],
)  # fmt: skip
def test_bad_addresses_are_refused(url):
    with pytest.raises(SettingsError, match="--server"):
        ServerLink(url)


@pytest.mark.parametrize("url", ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"])
def test_the_version_may_be_left_out(url):
    assert ServerLink(url).url == "http://h:1/v1"
