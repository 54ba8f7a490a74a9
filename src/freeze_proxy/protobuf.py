"""Protobuf messages and gRPC calls from a table of field numbers, for services of which only a few calls are used.

A table names the messages of a package, their fields with number and type, as a .proto file does::

    TABLE = {
        "VersionRequest": {"version": (1, "string")},
        "VersionResponse": {"runtime_name": (2, "string"), "labels": (5, "map string string")},
    }

Types are the scalar ones of proto3, ``repeated TYPE``, ``map KEY TYPE``, and the names of messages in the same table.
An enumeration is an ``int32``: on the wire they are one. Fields that a table leaves out are kept and passed over, so it
need only have those that are read. What goes over the wire is of the numbers alone: the package's name is our own.

Needs protobuf and grpclib, and is imported by those alone who speak gRPC.
"""

from collections.abc import Mapping
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpclib.client import Channel, UnaryUnaryMethod

Table = Mapping[str, Mapping[str, tuple[int, str]]]

_Field = descriptor_pb2.FieldDescriptorProto


def classes(package: str, table: Table) -> dict[str, type[Any]]:
    """The message classes of a table, by name. Raises ``ValueError`` for a type that is neither known nor in it."""
    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto3")
    for name, fields in table.items():
        message = file.message_type.add(name=name)
        for field, (number, written) in fields.items():
            _add_field(message, field, number, written, package, table)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}")) for name in table}


def _add_field(
    message: descriptor_pb2.DescriptorProto, name: str, number: int, written: str, package: str, table: Table
) -> None:
    label, kind = _Field.LABEL_OPTIONAL, written
    if written.startswith("repeated "):
        label, kind = _Field.LABEL_REPEATED, written.removeprefix("repeated ")
    elif written.startswith("map "):
        # A map is a repeated message of key and value, so the wire has it.
        _, key, value = written.split(" ", 2)
        label, kind = _Field.LABEL_REPEATED, "".join(part.capitalize() for part in name.split("_")) + "Entry"
        entry = message.nested_type.add(name=kind, options=descriptor_pb2.MessageOptions(map_entry=True))
        _add_field(entry, "key", 1, key, package, table)
        _add_field(entry, "value", 2, value, package, table)
        kind = f"{message.name}.{kind}"
    field = message.field.add(name=name, number=number, label=label)
    scalar = f"TYPE_{kind.upper()}"
    if scalar in dict(_Field.Type.items()):
        field.type = _Field.Type.Value(scalar)
    elif kind.partition(".")[0] in table:
        field.type, field.type_name = _Field.TYPE_MESSAGE, f".{package}.{kind}"
    else:
        raise ValueError(f"{message.name}.{name} is a {kind}, which is no type of protobuf and not in the table.")


class Service:
    """A gRPC service: ``methods`` are its calls, each with the names of its request and its response."""

    def __init__(self, name: str, messages: Mapping[str, type[Any]], methods: Mapping[str, tuple[str, str]]) -> None:
        self._name = name
        self._messages = messages
        self._methods = dict(methods)

    async def call(
        self,
        channel: Channel,
        method: str,
        fields: Mapping[str, Any] | None = None,
        *,
        timeout: float,
        metadata: Mapping[str, str] | None = None,
    ) -> Any:
        """One call; ``fields`` are the request's, messages among them as mappings, ``timeout`` is in seconds.

        Raises what grpclib does: ``GRPCError`` with a status, ``StreamTerminatedError`` and ``OSError`` where the
        connection fails, ``TimeoutError``.
        """
        request, response = self._methods[method]
        stub = UnaryUnaryMethod[Any, Any](
            channel, f"/{self._name}/{method}", self._messages[request], self._messages[response]
        )
        return await stub(self._messages[request](**(fields or {})), timeout=timeout, metadata=dict(metadata or {}))
