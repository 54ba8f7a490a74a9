"""What the sidecar says and understands on the wire: for every way of cutting it, and whatever comes."""

import json

import h11
import httptools
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from freeze_proxy.control.messages import (
    MOST_ANSWER,
    MOST_HEAD,
    MOST_SENTENCE,
    Answers,
    Garbled,
    complaint,
    order,
    request,
)

bodies = st.binary(max_size=300)
fields = st.lists(
    st.tuples(
        st.sampled_from([b"Content-Type", b"X-Some", b"Date", b"connection", b"Retry-After"]),
        st.from_regex(rb"[!-~]([ -~]{0,20}[!-~])?", fullmatch=True),
    ),
    max_size=4,
)
answers = st.tuples(st.integers(200, 599), st.sampled_from([b" OK", b" Not So Well", b" ", b""]), fields, bodies)


def encoded(status: int, phrase: bytes, fields: list[tuple[bytes, bytes]], body: bytes) -> bytes:
    lines = [b"HTTP/1.1 %d%b" % (status, phrase)]
    lines += [b"%b: %b" % field for field in fields]
    lines.insert(1 + len(fields) // 2, b"Content-length:%d" % len(body))
    return b"\r\n".join([*lines, b"", body])


def taken(pieces: list[bytes]) -> list[tuple[int, bytes]]:
    parser = Answers()
    found = []
    for piece in pieces:
        parser.feed(piece)
        while (answer := parser.next()) is not None:
            found.append(answer)
    return found


def cut(data: bytes, places: list[int]) -> list[bytes]:
    places = sorted({place % (len(data) + 1) for place in places})
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


@given(st.lists(answers, max_size=4), st.lists(st.integers(0, 5000), max_size=8))
def test_answers_are_understood_however_they_are_cut(
    said: list[tuple[int, bytes, list[tuple[bytes, bytes]], bytes]], places: list[int]
) -> None:
    data = b"".join(encoded(*answer) for answer in said)
    assert taken(cut(data, places)) == [(status, body) for status, _, _, body in said]


@given(answers)
def test_byte_for_byte(said: tuple[int, bytes, list[tuple[bytes, bytes]], bytes]) -> None:
    data = encoded(*said)
    assert taken([data[at : at + 1] for at in range(len(data))]) == [(said[0], said[3])]


hostile = st.lists(
    st.one_of(
        st.binary(max_size=30),
        st.sampled_from(
            [
                *(
                    b"HTTP/1.1 ",
                    b"200 OK\r\n",
                    b"\r\n\r\n",
                    b"\r\n",
                    b"Content-Length: 3",
                    b"Content-Length: -1",
                    b"\n",
                ),
                *(
                    b"Content-Length: 99999999999",
                    b"Transfer-Encoding: chunked",
                    b":",
                    b" ",
                    b"{}",
                    b"HTTP/1.0 200\r\n",
                ),
                *(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", b"HTTP/1.1 100 Continue\r\n\r\n", b"x" * 9000),
            ]
        ),
    ),
    max_size=30,
)


@given(hostile)
@example([b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc"])
@example([b"HTTP/1.1 200 OK\r\nContent-Length: \xb2\r\n\r\nabc"])
def test_whatever_comes_it_is_an_answer_or_garbled_and_memory_is_bounded(pieces: list[bytes]) -> None:
    parser = Answers()
    sentence = ""
    for piece in pieces:
        parser.feed(piece)
        try:
            while (answer := parser.next()) is not None:
                status, body = answer
                assert 200 <= status <= 999
                assert len(body) <= MOST_ANSWER
        except Garbled as error:
            sentence = str(error)
            break
        assert len(parser._data) <= MOST_HEAD + MOST_ANSWER
    assert len(sentence) < 300
    assert sentence.isprintable()


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH",
        b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 99 No\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n..",
        b"HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\n.",
        b"HTTP/1.1 200 OK\r\nContent-Length: 65537\r\n\r\n.",
        b"HTTP/1.1 200 OK\r\nContent-Length : 1\r\n\r\n.",
        b"HTTP/1.1 200 OK\r\n Content-Length: 1\r\n\r\n.",
        b"HTTP/1.1 200 OK\r\nno colon\r\nContent-Length: 1\r\n\r\n.",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n.",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * MOST_HEAD,
    ],
)
def test_what_is_garbled(data: bytes) -> None:
    with pytest.raises(Garbled):
        taken([data])


def test_what_is_no_http_is_known_at_its_first_byte() -> None:
    with pytest.raises(Garbled, match="does not speak"):
        taken([b"\x15"])
    assert taken([b"HTT"]) == []


# The sentence in an error.


@given(st.text(max_size=MOST_SENTENCE), st.booleans(), st.sampled_from([None, 0, 2]))
def test_a_sentence_is_found_as_json_has_it(text: str, ascii: bool, indent: int | None) -> None:
    body = json.dumps({"error": text}, ensure_ascii=ascii, indent=indent).encode("utf-8", "surrogatepass")
    found = complaint(body)
    assert found.isprintable()
    if text.isprintable():  # what is not is nothing to be shown, or written to a log
        assert found == text.strip()


@given(st.one_of(st.binary(max_size=200), st.binary(max_size=200).map(lambda rest: b'{"error": "' + rest)))
@example(b'{"error": "\\u')
@example(b'{"error": "\\')
@example(b'{"error": "\\ud83d\\ude00 \\ud83d"}')
@example(b'{"error": "' + b"x" * 100_000)
def test_no_body_is_too_odd(body: bytes) -> None:
    found = complaint(body)
    assert len(found) <= MOST_SENTENCE
    assert found.isprintable()


@pytest.mark.parametrize("body", [b"", b"{}", b'{"state": "awake"}', b'"error"', b'{"error": 3}', b"<html>"])
def test_where_there_is_no_sentence(body: bytes) -> None:
    assert complaint(body) == ""


def test_a_sentence_cannot_break_a_line_of_a_log() -> None:
    assert complaint(b'{"error": "one\\ntwo\\u0000\\u001b[31m\\tthree"}') == "one two  [31m three"


# What is said.


@given(st.one_of(st.none(), st.lists(st.text(max_size=20), max_size=4)), st.sampled_from(["", "freeze", "throttle"]))
def test_an_order_is_json(containers: list[str] | None, mode: str) -> None:
    body = order(containers, mode)
    if containers is None and not mode:
        assert body == b""
        return
    assert body.isascii()
    wanted = ({"containers": containers} if containers is not None else {}) | ({"mode": mode} if mode else {})
    assert json.loads(body) == wanted


@given(
    st.sampled_from(["/freeze", "/thaw"]),
    st.from_regex(rb"[!-~]{1,200}", fullmatch=True),
    st.sampled_from([b"", b'{"mode": "freeze"}']),
    st.booleans(),
)
def test_requests_are_http(path: str, token: bytes, body: bytes, lease: bool) -> None:
    raw = request(path, "[::1]:9696", token, body, lease=lease)
    server = h11.Connection(h11.SERVER)
    server.receive_data(raw)
    head = server.next_event()
    assert isinstance(head, h11.Request)
    found = dict(head.headers)
    assert (head.method, head.target, head.http_version) == (b"POST", path.encode(), b"1.1")
    assert found[b"token"] == token
    assert found.get(b"lease") == (b"connection" if lease else None)
    if body:
        data = server.next_event()
        assert isinstance(data, h11.Data)
        assert data.data == body
    assert isinstance(server.next_event(), h11.EndOfMessage)
    assert server.trailing_data == (b"", False)
    httptools.HttpRequestParser(object()).feed_data(raw)  # as the daemon reads it
