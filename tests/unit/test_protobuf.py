"""Messages from a table, compared with the wire format as its specification gives it; and calls, with a real server."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpclib import GRPCError
from grpclib.client import Channel

from freeze_proxy.protobuf import Service, classes

TABLE = {
    "Inner": {"number": (1, "int32")},
    "Outer": {
        "text": (1, "string"),
        "raw": (2, "bytes"),
        "inner": (3, "Inner"),
        "many": (4, "repeated string"),
        "inners": (5, "repeated Inner"),
        "some_labels": (6, "map string string"),
        "by_name": (7, "map string Inner"),
        "big": (150, "uint64"),
        "yes": (9, "bool"),
    },
    "Less": {"text": (1, "string")},
}
MESSAGES = classes("tests.protobuf", TABLE)


@pytest.mark.parametrize(
    ("fields", "wire"),
    [
        ({}, b""),
        ({"text": "hi"}, b"\x0a\x02hi"),
        ({"raw": b"\x00"}, b"\x12\x01\x00"),
        ({"inner": {"number": 150}}, b"\x1a\x03\x08\x96\x01"),
        ({"many": ["a", ""]}, b"\x22\x01a\x22\x00"),
        ({"inners": [{}, {"number": 1}]}, b"\x2a\x00\x2a\x02\x08\x01"),
        ({"some_labels": {"k": "v"}}, b"\x32\x06\x0a\x01k\x12\x01v"),
        ({"by_name": {"k": {"number": 1}}}, b"\x3a\x07\x0a\x01k\x12\x02\x08\x01"),
        ({"big": 1 << 63, "yes": True}, b"\x48\x01\xb0\x09\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01"),
    ],
)
def test_the_wire(fields: dict[str, Any], wire: bytes) -> None:
    message = MESSAGES["Outer"](**fields)
    assert message.SerializeToString(deterministic=True) == wire
    assert MESSAGES["Outer"].FromString(wire) == message


def test_what_is_not_in_the_table_is_passed_over() -> None:
    wire = MESSAGES["Outer"](text="hi", inner={"number": 1}, many=["x"]).SerializeToString()
    assert MESSAGES["Less"].FromString(wire).text == "hi"


@pytest.mark.parametrize("kind", ["Nothing", "strin", "repeated Nothing", "map string Nothing"])
def test_a_type_that_is_none(kind: str) -> None:
    with pytest.raises(ValueError, match=r"which is no type of protobuf and not in the table\.$"):
        classes("tests.wrong", {"Message": {"field": (1, kind)}})


def test_tables_do_not_meet() -> None:
    """Two of the same package name are two."""
    other = classes("tests.protobuf", {"Outer": {"text": (2, "string")}})
    assert other["Outer"](text="a").SerializeToString() == b"\x12\x01a"


# Calls.

SERVICE = Service("tests.Echo", MESSAGES, {"Echo": ("Less", "Less"), "Missing": ("Less", "Less")})


class Echo(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Answers what it was asked, with the metadata ``word`` before it."""

    def service(self, details: Any) -> Any:
        if details.method != "/tests.Echo/Echo":
            return None
        word = dict(details.invocation_metadata).get("word", "")

        def answer(request: bytes, _context: Any) -> bytes:
            text = MESSAGES["Less"].FromString(request).text
            return bytes(MESSAGES["Less"](text=word + text).SerializeToString())

        return grpc.unary_unary_rpc_method_handler(answer)


@pytest.fixture
def socket(tmp_path: Path) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(2), handlers=[Echo()])
    server.add_insecure_port(f"unix://{tmp_path}/echo.sock")
    server.start()
    yield f"{tmp_path}/echo.sock"
    server.stop(None).wait(5)


def call(socket: str, method: str, **how: Any) -> Any:
    async def go() -> Any:
        async with Channel(path=socket) as channel:
            return await SERVICE.call(channel, method, {"text": "hi"}, timeout=5, **how)

    return asyncio.run(go())


def test_a_call(socket: str) -> None:
    assert call(socket, "Echo").text == "hi"
    assert call(socket, "Echo", metadata={"word": "oh "}).text == "oh hi"


def test_a_call_that_fails(socket: str) -> None:
    with pytest.raises(GRPCError):
        call(socket, "Missing")
