"""acme.v1, the messages that `protoc` would make of the test service's own types."""

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, timestamp_pb2

__all__ = ["Book", "Writing"]

_FIELD = descriptor_pb2.FieldDescriptorProto
_TIMESTAMP = timestamp_pb2.Timestamp.DESCRIPTOR


def _message(name: str, /, **kinds: Any) -> descriptor_pb2.DescriptorProto:  # Any: an enum's number
    fields = [
        _FIELD(name=field, number=number, type=kind, label=_FIELD.LABEL_OPTIONAL)
        for number, (field, kind) in enumerate(kinds.items(), 1)
    ]
    for field in fields:
        if field.type == _FIELD.TYPE_MESSAGE:
            field.type_name = f".{_TIMESTAMP.full_name}"
    return descriptor_pb2.DescriptorProto(name=name, field=fields)


_pool = descriptor_pool.Default()
_pool.AddSerializedFile(
    descriptor_pb2.FileDescriptorProto(
        name="acme/v1/books.proto",
        package="acme.v1",
        syntax="proto3",
        dependency=[_TIMESTAMP.file.name],
        message_type=[
            _message("Book", name=_FIELD.TYPE_STRING, pages=_FIELD.TYPE_INT32, copies=_FIELD.TYPE_INT64),
            _message(
                "Writing",
                create_time=_FIELD.TYPE_MESSAGE,
                end_time=_FIELD.TYPE_MESSAGE,
                target=_FIELD.TYPE_STRING,
                verb=_FIELD.TYPE_STRING,
                requested_cancellation=_FIELD.TYPE_BOOL,
                state=_FIELD.TYPE_STRING,
                chapter=_FIELD.TYPE_STRING,
            ),
        ],
    ).SerializeToString()
)

Book: Any = message_factory.GetMessageClass(_pool.FindMessageTypeByName("acme.v1.Book"))
Writing: Any = message_factory.GetMessageClass(_pool.FindMessageTypeByName("acme.v1.Writing"))
