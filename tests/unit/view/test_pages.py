"""The pages as a browser without scripts gets them, with the worst texts in all places."""

from __future__ import annotations

import csv
import io
import json
import re
from html import unescape
from html.parser import HTMLParser
from urllib.parse import urlencode

import numpy as np
import pytest
from starlette.routing import Mount

from activation_logging import open_store
from activation_logging.detectors import SavedProbe
from activation_logging.store import StoreWriter
from activation_logging.view.addresses import address
from activation_logging.view.differences import compared
from activation_logging.view.sketches import Place
from tests.fixtures.answers import HIDDEN, NUM_LAYERS, put_answer
from tests.unit.view.conftest import HOSTILE, NUMBER, Pages


class Elements(HTMLParser):
    """All elements of a page, and all of its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attrs for name, attrs in self.found if name == tag]


def probe(**changes):
    rng = np.random.default_rng(0)
    fields = {
        "kind": "token",
        "form": "linear",
        "tensors": {"weight": rng.normal(size=HIDDEN), "bias": np.zeros(1)},
        "sources": (2,),
        "position": None,
        "threshold": 0.5,
        "model": "org/model",
        "num_layers": NUM_LAYERS,
        "label": "facts",
        "positive": "contradicted",
        "negative": "supported",
    }
    return SavedProbe(**fields | changes)


def every_page(entries) -> list[str]:
    found = ["", "?q=number", "?score=score%2Fmade_up&sort=highest", "label", "label?by=ada",
             "agreement", "?" + urlencode({"tag": f"sample={HOSTILE}"}),
             "?" + urlencode({"q": HOSTILE}), "label?" + urlencode({"by": HOSTILE[:60]}),
             "agreement?" + urlencode({"first": HOSTILE, "second": "rules"}),
             "?" + urlencode({"status": HOSTILE})]  # fmt: skip
    for entry in entries.values():
        found.append(f"entry/{address(entry.key)}")
        found.append(f"entry/{address(entry.key)}/map")
        found.append(f"entry/{address(entry.key)}/near")
        found.append(f"label?by=ada&key={address(entry.key)}")
    return found


def test_no_text_becomes_markup_or_a_script(pages, entries, store):
    pages.state.near.build(Place("org/model", "resid@4", "response_last"))
    details = {"inspect_log": "log.eval", "sample_id": HOSTILE, "epoch": 1, HOSTILE: HOSTILE}
    store.put_evaluation(entries["request-4"].key, name="i", label="correct", details=details)
    for where in every_page(entries):
        answer = pages.client.get(f"/activations/{where}")
        assert answer.status_code in (200, 400), where
        page = Elements(answer.text)
        assert not page.all("img"), where
        assert all("src" in script for script in page.all("script")), where
        assert all(s["src"].startswith("/activations/static/") for s in page.all("script"))
        assert not page.all("style"), where
        handlers = [name for _, attrs in page.found for name in attrs if name.startswith("on")]
        assert handlers == [], where
        assert not any("style" in attrs for _, attrs in page.found), where
        assert not re.search(r"hx-on|javascript:", answer.text.replace(HOSTILE, "")), where
        assert "' 49" not in page.text, where  # what stands between braces is not evaluated


def test_hostile_texts_are_shown_as_they_are(pages, entries):
    page = Elements(pages.get(f"entry/{address(entries['request-4'].key)}"))
    assert HOSTILE in page.text
    assert HOSTILE in Elements(pages.get(f"entry/{address(entries['request-3'].key)}")).text
    assert HOSTILE in Elements(pages.get(f"entry/{address(entries['request-5'].key)}")).text


def test_every_page_is_guarded(pages, entries):
    for where in [*every_page(entries), "static/view.js", "nothing", "entry/nothing"]:
        headers = pages.client.get(f"/activations/{where}").headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"


def test_the_list_shows_answers_and_counts(pages):
    page = pages.get("?label=rules%3Dcorrect")
    assert len(re.findall(r'class="card row"', page)) == NUMBER // 3
    text = Elements(page).text
    assert f"{NUMBER // 3} of {NUMBER} answers match" in " ".join(text.split())
    assert {"label: rules", "tag: dataset", "model", "status"} <= set(
        re.findall(r"<bdi>([^<]+)</bdi></h2>", page)
    )


def test_next_page_is_a_link(pages, monkeypatch):
    monkeypatch.setattr("activation_logging.view.pages.answers.PAGE_SIZE", 5)
    shown, where = [], ""
    while where is not None:
        page = Elements(pages.get(where))
        shown += [one["value"] for one in page.all("input") if one.get("name") == "key"]
        where = next((one["href"] for one in page.all("a") if one.get("rel") == "next"), None)
    assert len(shown) == len(set(shown)) == NUMBER


def test_a_key_or_a_request_id_leads_to_its_answer(pages, entries):
    entry = entries["request-7"]
    for text in (entry.key, entry.key[:10], "request-7", address(entry.key)):
        answer = pages.client.get("/activations/", params={"q": text})
        assert answer.url.path == f"/activations/entry/{address(entry.key)}", text
    assert pages.client.get("/activations/request/request-7").url.path.endswith(entry.key)
    pages.get("request/nothing", status=404)
    pages.get("entry/nothing", status=404)


def test_repetitions_are_shown_beside_each_other(pages, entries):
    first, second = entries["request-0"], entries["request-10"]
    assert second.key == f"{first.key}#1"
    page = pages.get(f"entry/{address(second.key)}")
    assert f"entry/{first.key}" in page
    assert "<ins>0</ins>" in page


def test_answers_that_repeat_themselves_do_not_hold_the_page_up(tmp_path):
    """A comparison of two such answers took minutes, and the page waited for it."""
    path = tmp_path / "s.lmdb"
    writer = StoreWriter(path, role="test")
    for i, text in enumerate(("the cat sat on the mat. ", "a cat sat on the mat, ")):
        put_answer(writer, f"r{i}", prompt="Tell me.", response=text * 300)
    writer.close()
    pages = Pages(path)
    pages.state.index.build()
    with open_store(path) as store:
        page = pages.get(f"entry/{address(next(iter(store)))}")
    assert "Not compared word by word" in page
    assert "a cat sat on the mat, a cat" in page


def test_what_differs():
    def marked(answer, other):
        parts = compared(answer, other)
        assert "".join(part.text for part in parts) == other
        return [part.text for part in parts if part.differs]

    assert marked("born in 1879 in Ulm", "born  in 1880\nin Ulm .") == ["1880", "."]
    assert marked("same", "same") == marked("a b", "a  b") == marked("x", "") == []
    assert marked("", "a b") == ["a b"]


def classes(page):
    return [
        one["class"]
        for one in Elements(page).all("span")
        if "token" in (one.get("class") or "").split()
    ]


def test_tokens_are_coloured_by_what_is_chosen(path, entries):
    pages = Pages(path, probes={"claims": probe()})
    pages.state.index.build()
    where = f"entry/{address(entries['request-2'].key)}"
    options = [one["value"] for one in Elements(pages.get(where)).all("option")]
    assert options == [
        "", "probe/claims", "score/made_up", "logprob", "rank", "entropy",
        "norm/resid@2", "norm/resid@4",
    ]  # fmt: skip
    scores = probe().score_rows(entries["request-2"])[3:]
    by_probe = classes(pages.get(f"{where}?colour=probe/claims"))
    assert by_probe == classes(pages.get(where))
    for said, score in zip(by_probe, scores, strict=False):
        assert said.split()[1] == ("positive" if score >= 0.5 else "negative")
    by_logprob = classes(pages.get(f"{where}?colour=logprob"))
    assert by_logprob == ["token", "token unlikely level-2", "token unlikely level-8", "token"]
    # The second token was the second choice; the others were the first.
    assert classes(pages.get(f"{where}?colour=rank")) == [
        "token",
        "token unlikely level-5",
        "token",
        "token",
    ]
    rows = np.linalg.norm(entries["request-2"].layer(2).astype(np.float64), axis=1)[3:7]
    levels = np.round(20 * (rows - rows.min()) / (rows.max() - rows.min()))
    by_norm = classes(pages.get(f"{where}?colour=norm/resid@2"))
    assert by_norm == [f"token unlikely level-{n:.0f}" if n else "token" for n in levels]


def test_details_of_a_token_are_there(pages, entries):
    page = Elements(pages.get(f"entry/{address(entries['request-2'].key)}"))
    token = [one for one in page.all("span") if "data-more" in one][1]
    lines = token["data-more"].split("\n")
    assert token["data-logprob"] == "-0.5"
    assert lines[0] == "token 2 of 5"
    assert "rank: 2" in lines
    assert any(line.startswith("score made_up: 0.1") for line in lines)
    assert "instead: #9 90.5%" in lines
    first = next(one for one in page.all("span") if "data-more" in one)["data-more"]
    # Of token 9 no answer says the text; the others are known from any answer of the model.
    assert "instead: #9 8.2%" in first
    assert pages.state.index.pieces("org/model", [4, 5, 9]) == {5: " is"}
    assert pages.state.index.pieces("org/other", [5]) == {}
    p = np.exp([-0.1, -0.5])
    p = p[p > 0]
    entropy = -(p * np.log(p)).sum()
    assert f"entropy at least: {entropy:.4g}" in lines


def test_a_colour_that_cannot_be_is_said_and_the_answer_shown(pages, entries):
    where = f"entry/{address(entries['request-2'].key)}"
    for colour in ("probe/none", "score/none", "norm/resid@3", "norm/x", HOSTILE):
        page = pages.get(f"{where}?{urlencode({'colour': colour})}")
        assert 'class="note" role="status"' in page
        assert "number 2" in Elements(page).text


def test_a_map_has_a_row_for_each_layer(path, entries):
    pages = Pages(path, probes={"claims": probe()})
    pages.state.index.build()
    where = f"entry/{address(entries['request-2'].key)}/map"
    page = Elements(pages.get(f"{where}?of=norm"))
    numbers = [float(one["title"]) for one in page.all("td") if one.get("title")]
    expected = [
        np.linalg.norm(entries["request-2"].layer(layer).astype(np.float64), axis=1)[3:]
        for layer in (4, 2)
    ]
    np.testing.assert_allclose(numbers, np.concatenate(expected), rtol=1e-3)
    own = Elements(pages.get(f"{where}?of=probe/claims"))
    numbers = [float(one["title"]) for one in own.all("td") if one.get("title")]
    np.testing.assert_allclose(numbers[4:], probe().score_rows(entries["request-2"])[3:], rtol=1e-3)
    pages.get(f"{where}?of=nothing", status=400)


def test_an_entry_without_rows_or_texts_is_shown(path):
    writer = StoreWriter(path, role="test")
    from tests.fixtures.answers import make_document

    writer.put_entry(make_document("bare", prompt="bare", response="", response_ids=()))
    writer.put_entry(make_document("ids", prompt="ids only"))
    writer.put_entry(make_document("lone \udc80", prompt="lone \udc80", response="\udc80 \0"))
    writer.close()
    pages = Pages(path)
    pages.state.index.build()
    with open_store(path) as store:
        for prompt in ("bare", "ids only", "lone \udc80"):
            (entry,) = store.for_prompt(prompt)
            text = pages.get(f"entry/{entry.key}")
            assert "have not arrived" in text
            pages.get(f"entry/{entry.key}/map")
            pages.get(f"label?by=ada&key={entry.key}")
    assert "pending" in pages.get("?status=pending")


# --- changing ----------------------------------------------------------------------------


def test_a_label_is_saved_at_once_and_the_next_answer_shown(pages, path, entries):
    newest = entries[f"request-{NUMBER - 1}"]
    page = Elements(pages.get("label?by=ada&order=newest"))
    fields = {one["name"]: one["value"] for one in page.all("input") if one.get("name") != "spans"}
    assert fields["key"] == address(newest.key)
    answer = pages.post("label", **{**fields, "label": "hallucinated"})
    with open_store(path) as store:
        given = store[newest.key].evaluations["ada"]
    assert (given.label, given.judge) == ("hallucinated", "hand")
    following = Elements(answer.text)
    shown = [one["value"] for one in following.all("input") if one.get("name") == "key"]
    assert shown[0] == address(entries[f"request-{NUMBER - 2}"].key)
    undone = pages.post("label/undo", by="ada", queue=fields["queue"])
    with open_store(path) as store:
        assert "ada" not in store[newest.key].evaluations
    assert address(newest.key) in undone.text


def test_others_and_probes_are_not_shown_to_who_labels(path, entries):
    pages = Pages(path, probes={"claims": probe()})
    pages.state.index.build()
    page = pages.get(f"label?by=ada&key={address(entries['request-4'].key)}")
    assert 'class="judged' not in page
    assert set(classes(page)) == {"token"}


def test_spans_are_saved(pages, path, entries):
    entry = entries["request-4"]
    spans = [{"start": 3, "end": 5, "label": "contradicted"}]
    common = {"by": "ada", "key": address(entry.key), "queue": "by=ada"}
    page = pages.post("label", **common, spans=json.dumps(spans)).text
    with open_store(path) as store:
        given = store[entry.key].evaluations["ada"]
    assert given.label == "hallucinated"
    assert [span.as_json() for span in given.spans] == spans
    assert 'class="judged contradicted"' in page
    for wrong in ("{", "[1]", '[{"start": 3, "end": 500, "label": "supported"}]', "null1"):
        pages.post("label", 400, **common, spans=wrong)


def test_bad_labels_are_refused(pages, path, entries):
    key = address(entries["request-4"].key)
    pages.post("label", 400, by="ada", key=key, label="wrong")
    pages.post("label", 400, by="", key=key, label="correct")
    pages.post("label", 400, by="rules", key=key, label="correct")
    pages.post("label", 404, by="ada", key="0" * 64, label="correct")
    pages.post("label/undo", 400, by="nobody")
    with open_store(path) as store:
        assert store[entries["request-4"].key].evaluations["rules"].label == "hallucinated"
        assert not any("ada" in e.evaluations for e in store.entries())


def test_a_selection_is_saved_as_a_file(pages, entries):
    keys = [entries["request-4"].key, entries["request-10"].key]
    answer = pages.post("selection", key=keys, action="jsonl")
    records = [json.loads(line) for line in answer.text.splitlines()]
    assert [one["key"] for one in records] == keys
    assert records[0]["response"] == entries["request-4"].response
    assert records[0]["evaluations"]["rules"]["label"] == "hallucinated"
    assert "attachment" in answer.headers["content-disposition"]
    everything = pages.post("selection", all="1", query="label=rules%3Drefused", action="csv")
    rows = list(csv.DictReader(io.StringIO(everything.text)))
    assert len(rows) == NUMBER // 3
    assert {json.loads(row["evaluations"])["rules"]["label"] for row in rows} == {"refused"}


def test_a_text_is_no_formula(path):
    writer = StoreWriter(path, role="test")
    put_answer(writer, "formula", prompt="=1+1", response="@x")
    writer.close()
    pages = Pages(path)
    pages.state.index.build()
    answer = pages.post("selection", all="1", query="", action="csv")
    row = next(r for r in csv.DictReader(io.StringIO(answer.text)) if r["request_id"] == "formula")
    assert (row["prompt"], row["response"]) == ("'=1+1", "'@x")


def test_a_selection_is_labelled(pages, path):
    pages.post(
        "selection", all="1", query="tag=dataset%3Deven", action="label", by="ada", label="invalid"
    )
    with open_store(path) as store:
        labelled = {e.tags["dataset"] for e in store.entries() if "ada" in e.evaluations}
        assert labelled == {"even"}
    pages.post("selection", 400, all="1", query="", action="label", by="rules", label="invalid")
    pages.post("selection", 400, action="label", by="ada", label="invalid")
    pages.post("selection", 400, all="1", query="", action="nonsense")


def test_spans_stay_where_a_selection_is_labelled(pages, path, entries):
    key = entries["request-2"].key
    span = '[{"start": 0, "end": 2, "label": "supported"}]'
    pages.post("label", by="ada", key=address(key), spans=span)
    pages.post("selection", key=key, action="label", by="ada", label="refused")
    with open_store(path) as store:
        found = store[key].evaluations["ada"]
    assert (found.label, [(one.start, one.end) for one in found.spans]) == ("refused", [(0, 2)])


def test_deleting_asks_first(pages, path, entries):
    keys = [entries["request-4"].key, entries["request-5"].key]
    asked = pages.post("selection", key=keys, action="delete")
    assert "Delete 2 answers?" in asked.text
    with open_store(path) as store:
        assert len(store) == NUMBER
    # A number that is no longer right is asked again.
    assert "Delete 2 answers?" in pages.post("selection", key=keys, action="delete", sure="3").text
    page = pages.post("selection", key=keys, action="delete", sure="2").text
    with open_store(path) as store:
        assert len(store) == NUMBER - 2
    assert f"{NUMBER - 2} of {NUMBER - 2}" in " ".join(Elements(page).text.split())


# --- who may do what ---------------------------------------------------------------------


def posts(pages):
    (mounted,) = [route.app for route in pages.app.routes if isinstance(route, Mount)]
    return [r.path for r in mounted.router.routes if "POST" in (getattr(r, "methods", None) or ())]


def test_every_form_of_another_site_is_refused(pages, path):
    with open_store(path) as store:
        key = next(iter(store))
    fields = {
        "by": "ada", "key": key, "label": "correct", "action": "delete", "sure": "1", "all": "",
    }  # fmt: skip
    assert len(posts(pages)) == 9
    for where in posts(pages):
        pages.post(where.lstrip("/"), 400, forged=True, **fields)
        answer = pages.client.post(f"/activations{where}", data=fields)
        assert answer.status_code == 400, where
        for headers in (
            {"origin": "http://evil.example"}, {"sec-fetch-site": "cross-site"}, {"origin": "null"},
        ):  # fmt: skip
            token = pages.client.cookies["activations_form"]
            answer = pages.client.post(
                f"/activations{where}", data={**fields, "form_token": token}, headers=headers
            )
            assert answer.status_code == 403, where
    with open_store(path) as store:
        assert len(store) == NUMBER
        assert not any("ada" in e.evaluations for e in store.entries())


def test_scripts_of_another_site_see_nothing(pages):
    for mode, status in (("cors", 403), ("no-cors", 403), ("navigate", 200)):
        headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": mode}
        assert pages.client.get("/activations/", headers=headers).status_code == status


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "", "[::", "127.0.0.1.evil.example:80"]
)
def test_another_name_for_this_machine_is_refused(pages, host):
    assert pages.client.get("/activations/", headers={"host": host}).status_code == 421


@pytest.mark.parametrize("host", ["127.0.0.1:8123", "localhost", "[::1]:80"])
def test_its_own_names_are_not(pages, host):
    assert pages.client.get("/activations/", headers={"host": host}).status_code == 200


def test_on_a_server_without_a_key_a_name_of_a_site_is_refused(path):
    pages = Pages(path, hosts=None)
    pages.state.index.build()
    for host, status in (("evil.example", 421), ("192.168.1.7:8000", 200), ("localhost", 200)):
        assert pages.client.get("/activations/", headers={"host": host}).status_code == status


def test_with_a_key_nothing_is_shown_without_it(path, entries):
    pages = Pages(path, keys=["secret key"], hosts=None)
    pages.state.index.build()
    html = {"accept": "text/html"}
    for where in [*every_page(entries), "selection", "label/undo", "entry/x/../../"]:
        answer = pages.client.get(f"/activations/{where}", follow_redirects=False)
        assert answer.status_code == 401, where
        answer = pages.client.get(f"/activations/{where}", headers=html)
        assert answer.url.path == "/activations/key"
        assert "It is number" not in answer.text
    assert pages.client.post("/activations/selection", data={"all": "1"}).status_code == 401
    assert "That is not the key" in pages.post("key", 401, key="wrong").text
    assert "secret key" not in pages.post("key", key="secret key").text
    assert "number 7" in pages.get()
    assert "secret" not in str(dict(pages.client.cookies))


def test_who_gives_the_key_comes_to_the_page_that_was_asked_for(path, entries):
    pages = Pages(path, keys=["secret"], hosts=None)
    pages.state.index.build()
    where = f"/activations/entry/{address(entries['request-4'].key)}?colour=logprob"
    asked = pages.client.get(f"{where}&token=secrets", headers={"accept": "text/html"})
    to = unescape(re.search(r'name="to" value="([^"]*)"', asked.text)[1])
    assert "secrets" not in to
    assert to in unescape(pages.post("key", 401, key="wrong", to=to).text)
    answer = pages.post("key", key="secret", to=to)
    assert (answer.url.path, answer.url.query) == (where.partition("?")[0], b"colour=logprob")
    assert "number 4" in answer.text
    for elsewhere in ("//evil.example/", "https://evil.example/", "\\\\evil.example"):
        pages.client.follow_redirects = False
        found = pages.post("key", 303, key="secret", to=elsewhere).headers["location"]
        assert found.startswith("/activations/")


def test_a_part_of_a_page_whose_key_has_changed_asks_for_the_new_one(path):
    pages = Pages(path, keys=["secret"], hosts=None)
    headers = {"accept": "text/html, */*", "hx-request": "true"}
    answer = pages.client.get("/activations/?q=x", headers=headers)
    assert (answer.status_code, answer.headers["hx-refresh"]) == (401, "true")


def test_a_key_in_the_address_goes_away(path):
    pages = Pages(path, keys=["t0ken"], hosts=None)
    pages.state.index.build()
    answer = pages.client.get("/activations/?token=t0ken&q=number", follow_redirects=False)
    assert answer.headers["location"] == "/activations/?q=number"
    assert "number 7" in pages.get()
    assert Pages(path, keys=["t0ken"]).client.get("/activations/?token=x").status_code == 401


def test_a_bearer_key_opens_them_too(path):
    pages = Pages(path, keys=["a", "b"], hosts=None)
    pages.state.index.build()
    for key, status in (("a", 200), ("b", 200), ("c", 401), ("", 401)):
        headers = {"authorization": f"Bearer {key}"}
        assert pages.client.get("/activations/", headers=headers).status_code == status


def test_no_address_names_a_file(pages):
    for name in ("../app.py", "..%2fapp.py", "%2e%2e/guard.py", "nothing", "htmx.LICENSE"):
        assert pages.client.get(f"/activations/static/{name}").status_code == 404


def test_who_judges_is_not_told_what_probes_and_others_say(pages, entries):
    key = address(entries["request-4"].key)
    assert "score made_up: " in pages.get(f"entry/{key}")
    page = pages.get(f"label?by=ada&key={key}")
    assert "rank: 2" in page
    assert "score made_up: " not in page


def test_an_answer_is_labelled_from_its_page(pages, entries):
    key = address(entries["request-4"].key)
    assert f'href="/activations/label?key={key}"' in pages.get(f"entry/{key}")
    assert f'<input type="hidden" name="key" value="{key}">' in pages.get(f"label?key={key}")


# --- first use, and what is broken -------------------------------------------------------


def test_an_empty_store_says_what_to_do(tmp_path):
    open_store(tmp_path / "empty", writable=True).close()
    pages = Pages(tmp_path / "empty")
    pages.state.index.build()
    assert "There are no answers yet" in pages.get()
    assert "Nothing is left to label" in pages.get("label?by=ada")
    assert "0 names" in pages.get("agreement")


def test_a_store_that_is_not_there_is_said(tmp_path):
    page = Pages(tmp_path / "none").get(status=404)
    assert "there is no store at" in page
    assert "Ask the server something" in page
    assert not (tmp_path / "none").exists()


def test_a_broken_store_says_what_to_do(path):
    (path / "data.mdb").write_bytes(b"no store" * 2048)
    page = Pages(path).get(status=400)
    assert "that is not an LMDB file" in page
    assert f"activation-logging verify {path}" in page


def test_while_it_is_read_the_page_says_how_far(pages, path, monkeypatch):
    fresh = Pages(path)
    monkeypatch.setattr(type(fresh.state.index), "ready", property(lambda self: False))
    monkeypatch.setattr(type(fresh.state.index), "build", lambda self, progress=None: None)
    assert "being read once" in fresh.get()
    assert "being read once" in fresh.get("label")


def test_an_index_that_breaks_is_made_again(pages, path):
    assert "number 7" in pages.get()
    index = pages.state.index
    index._connection.execute("DROP TABLE slots")
    with open_store(path, writable=True) as store:
        store.put_evaluation(next(iter(store)), name="hand", label="correct")
    pages.get()
    pages.state.index.build()
    assert pages.state.index is not index
    assert "number 7" in pages.get()


def test_a_store_that_may_not_be_written_says_so(pages, path, entries, monkeypatch):
    from activation_logging.errors import StoreReadOnly

    def refuse(self):
        raise StoreReadOnly(f"{path} cannot be written by this user")

    monkeypatch.setattr(type(pages.state), "writable", refuse)
    key = address(entries["request-4"].key)
    answer = pages.post("label", 403, by="ada", key=key, label="correct")
    assert "cannot be written by this user" in answer.text
