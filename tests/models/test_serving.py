"""An exported model behind gRPC, with clients of TensorFlow Serving."""

import concurrent.futures

import numpy as np
import pytest
import tensorflow as tf
from nets import TASKS, losses, mlp, regression_data, values
from prediction_server import require_protos, serving


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Address of a served model, and its weights."""
    require_protos()
    x, y = regression_data()
    model = mlp()
    model.compile("adam", losses(), strategy="alternating")
    model.fit(x, y, verbose=0)
    folder = tmp_path_factory.mktemp("digits")
    model.export(folder / "1", verbose=False)
    with serving(folder, "digits") as address:
        yield address, values(model.weights)


@pytest.fixture
def predict(server):
    """A function that sends a request with the stub of the protos."""
    import grpc
    from tensorflow_serving.apis import prediction_service_pb2_grpc

    with grpc.insecure_channel(server[0]) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        yield lambda request: stub.Predict(request, timeout=60)


def request_for(x, signature="", name="digits", key="features"):
    from tensorflow_serving.apis import predict_pb2

    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    request.model_spec.signature_name = signature
    request.inputs[key].CopyFrom(tf.make_tensor_proto(x))
    return request


def arrays(response):
    return {key: tf.make_ndarray(t) for key, t in response.outputs.items()}


def by_hand(weights, x):
    """What the net computes, in NumPy."""
    kernels, biases = weights[::2], weights[1::2]
    for kernel, bias in zip(kernels[:2], biases[:2], strict=True):
        x = np.tanh(x @ kernel + bias)
    return {
        task: x @ kernels[2 + i] + biases[2 + i] for i, task in enumerate(TASKS)
    }


def test_signatures(server, predict):
    x, _ = regression_data(rows=5, seed=1)
    expected = by_hand(server[1], x)
    answer = predict(request_for(x))
    assert answer.model_spec.version.value == 1
    assert sorted(answer.outputs) == sorted(TASKS)
    for task in TASKS:
        (key, found), *more = arrays(predict(request_for(x, task))).items()
        assert not more
        assert key == task
        np.testing.assert_allclose(found, expected[task], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(found, arrays(answer)[task])
    filtered = request_for(x)
    filtered.output_filter.append("middle")
    assert list(predict(filtered).outputs) == ["middle"]


MALFORMED = {
    "unknown model": lambda x: request_for(x, name="letters"),
    "unknown signature": lambda x: request_for(x, "up"),
    "unknown input": lambda x: request_for(x, "left", key="pixels"),
    "wrong type": lambda x: request_for(x.astype("float64"), "left"),
    "wrong width": lambda x: request_for(x[:, :5], "left"),
    "wrong rank": lambda x: request_for(x[0], "left"),
    "strings": lambda x: request_for(np.full((2, 6), "one"), "left"),
}


def without_input(x):
    request = request_for(x)
    request.inputs.clear()
    return request


def cut_off(x):
    request = request_for(x, "left")
    content = request.inputs["features"].tensor_content
    request.inputs["features"].tensor_content = content[:-3]
    return request


def unknown_output(x):
    request = request_for(x, "left")
    request.output_filter.append("right")
    return request


def another_version(x):
    request = request_for(x)
    request.model_spec.version.value = 2
    return request


MALFORMED |= {
    each.__name__: each
    for each in (without_input, cut_off, unknown_output, another_version)
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_requests_get_an_error(predict, kind):
    import grpc

    x, _ = regression_data(rows=2)
    with pytest.raises(grpc.RpcError) as caught:
        predict(MALFORMED[kind](x))
    assert caught.value.code() in (
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
    )
    # And the server goes on.
    assert len(predict(request_for(x)).outputs) == 3


def test_concurrent_clients_get_their_own_answers(server):
    """Eight clients with batches of their own, good and malformed requests."""
    import grpc
    from tensorflow_serving.apis import prediction_service_pb2_grpc

    address, weights = server
    malformed = list(MALFORMED.values())

    def client(number):
        random = np.random.default_rng(number)
        counts = [0, 0]
        with grpc.insecure_channel(address) as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            for turn in range(25):
                x = random.normal(size=(random.integers(1, 9), 6))
                x = x.astype("float32")
                if turn % 5 == number % 5:
                    kind = malformed[(turn + number) % len(malformed)]
                    with pytest.raises(grpc.RpcError):
                        stub.Predict(kind(x), timeout=60)
                    counts[1] += 1
                    continue
                signature = ["", *TASKS][random.integers(4)]
                answer = stub.Predict(request_for(x, signature), timeout=60)
                expected = by_hand(weights, x)
                found = arrays(answer)
                assert set(found) == ({signature} if signature else set(TASKS))
                for task in found:
                    np.testing.assert_allclose(
                        found[task], expected[task], rtol=1e-5, atol=1e-6
                    )
                counts[0] += 1
        return counts

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        counts = list(pool.map(client, range(8)))
    assert counts == [[20, 5]] * 8
