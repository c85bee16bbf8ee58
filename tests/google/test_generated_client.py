"""A client that Google generates of its protos, unmodified: one of its APIs, with what is slow in it done by lro."""

import pytest
from google.api_core import exceptions
from google.auth.credentials import AnonymousCredentials
from google.cloud.memcache_v1 import CloudMemcacheClient, Instance, OperationMetadata
from google.longrunning import operations_pb2

from tests.google.conftest import Service, reason
from tests.google.test_operations_client import SOON

LOCATION = "projects/p/locations/europe-west1"
ASKED = Instance(display_name="Sessions", node_count=2, node_config={"cpu_count": 1, "memory_size_mb": 1024})


@pytest.fixture
def client(service: Service) -> CloudMemcacheClient:
    options = {"api_endpoint": service.url}
    return CloudMemcacheClient(credentials=AnonymousCredentials(), transport="rest", client_options=options)


def test_a_whole_life_of_an_operation(service: Service, client: CloudMemcacheClient) -> None:
    creating = client.create_instance(parent=LOCATION, instance_id="whole", instance=ASKED)
    name, made = creating.operation.name, f"{LOCATION}/instances/whole"
    assert name.startswith(f"{LOCATION}/operations/")
    assert creating.metadata == OperationMetadata(
        create_time=creating.metadata.create_time, target=made, verb="instances.create", api_version="v1"
    )

    service.heard_of(name, "waiting for a host")
    assert not creating.done()
    assert (creating.metadata.verb, creating.metadata.status_detail) == ("create", "waiting for a host")
    service.let_end(name)
    instance = creating.result(polling=SOON)

    assert isinstance(instance, Instance)
    assert (instance.name, instance.display_name, instance.node_count) == (made, "Sessions", 2)
    assert (instance.node_config, instance.state) == (ASKED.node_config, Instance.State.READY)
    assert instance.create_time > creating.metadata.create_time
    assert creating.metadata.end_time > instance.create_time
    assert not creating.metadata.cancel_requested

    (listed,) = client.list_operations(operations_pb2.ListOperationsRequest(name=LOCATION)).operations
    assert listed == client.get_operation(operations_pb2.GetOperationRequest(name=name)) == creating.operation
    client.delete_operation(operations_pb2.DeleteOperationRequest(name=name))
    with pytest.raises(exceptions.NotFound) as caught:
        client.get_operation(operations_pb2.GetOperationRequest(name=name))
    assert reason(caught.value) == "OPERATION_NOT_FOUND"


def test_a_cancel(service: Service, client: CloudMemcacheClient) -> None:
    creating = client.create_instance(parent=LOCATION, instance_id="cancelled", instance=ASKED)
    service.heard_of(creating.operation.name, "waiting for a host")

    assert creating.cancel() is True

    with pytest.raises(exceptions.Cancelled):
        creating.result(polling=SOON)
    assert creating.cancelled()
    assert creating.metadata.cancel_requested
    assert creating.metadata.end_time > creating.metadata.create_time


def test_a_cancel_by_its_name(client: CloudMemcacheClient) -> None:
    creating = client.create_instance(parent=LOCATION, instance_id="named", instance=ASKED)

    client.cancel_operation(operations_pb2.CancelOperationRequest(name=creating.operation.name))

    with pytest.raises(exceptions.Cancelled):
        creating.result(polling=SOON)


def test_what_is_deleted_is_empty(client: CloudMemcacheClient) -> None:
    name = f"{LOCATION}/instances/deleted"
    deleting = client.delete_instance(name=name)

    assert deleting.result(polling=SOON) is not None
    assert (deleting.metadata.verb, deleting.metadata.target) == ("delete", name)


def test_a_second_operation_on_an_instance_is_refused(client: CloudMemcacheClient) -> None:
    creating = client.create_instance(parent=LOCATION, instance_id="twice", instance=ASKED)

    with pytest.raises(exceptions.Conflict) as caught:
        client.create_instance(parent=LOCATION, instance_id="twice", instance=ASKED)

    assert reason(caught.value) == "TARGET_BUSY"
    creating.cancel()
