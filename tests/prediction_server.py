"""A gRPC server of SavedModels, over the protocol of TensorFlow Serving.

TensorFlow Serving is no Python package, so tests talk to this instead: the
`PredictionService` of its own protos (package tensorflow-serving-api), its
directory layout and its client stub, in a process that knows TensorFlow and
nothing of mtlkeras.
"""

import argparse
import concurrent.futures
import contextlib
import pathlib
import subprocess
import sys

import pytest


def has_protos():
    try:
        from tensorflow_serving.apis import (  # noqa: F401
            prediction_service_pb2_grpc,
        )
    except Exception:  # absent, or made for another version of protobuf
        return False
    return True


def require_protos():
    if not has_protos():
        pytest.skip(
            "tensorflow-serving-api is not installed, or not for this version "
            "of protobuf: `pip install --no-deps tensorflow-serving-api`"
        )


@contextlib.contextmanager
def serving(folder, name):
    """Address of a process that serves the newest version in a folder."""
    require_protos()
    process = subprocess.Popen(
        [sys.executable, __file__, str(folder), name],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        address = process.stdout.readline().strip()
        assert address, "the server did not start"
        yield address
    finally:
        process.stdin.close()  # it serves until then
        process.wait(timeout=60)
        process.stdout.close()
    assert process.returncode == 0


class Refused(Exception):
    """A request that cannot be answered; arguments: status code, reason."""


def make_service(folder, name):
    """The service that answers for the model in a folder."""
    import grpc
    import tensorflow as tf
    from tensorflow_serving.apis import (
        predict_pb2,
        prediction_service_pb2_grpc,
    )

    version = max(int(path.name) for path in pathlib.Path(folder).iterdir())
    loaded = tf.saved_model.load(str(pathlib.Path(folder) / str(version)))
    missing, invalid = (
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.INVALID_ARGUMENT,
    )

    def read(proto, spec, key):
        try:
            array = tf.make_ndarray(proto)
        except (TypeError, ValueError, KeyError) as error:
            raise Refused(invalid, f"input {key!r}: {error}") from error
        if tf.as_dtype(proto.dtype) != spec.dtype:
            raise Refused(invalid, f"input {key!r} must be {spec.dtype}")
        if not spec.shape.is_compatible_with(array.shape):
            raise Refused(invalid, f"input {key!r} must be {spec.shape}")
        return tf.constant(array, spec.dtype)

    def predict(request):
        asked = request.model_spec
        if asked.name != name:
            raise Refused(missing, f"no model {asked.name!r}")
        if asked.HasField("version") and asked.version.value != version:
            raise Refused(missing, f"no version {asked.version.value}")
        key = asked.signature_name or "serving_default"
        if key not in loaded.signatures:
            raise Refused(invalid, f"no signature {key!r}")
        signature = loaded.signatures[key]
        _, specs = signature.structured_input_signature
        if set(request.inputs) != set(specs):
            raise Refused(invalid, f"inputs must be {sorted(specs)}")
        outputs = signature(
            **{k: read(request.inputs[k], s, k) for k, s in specs.items()}
        )
        wanted = list(request.output_filter) or list(outputs)
        if not set(wanted) <= set(outputs):
            raise Refused(invalid, f"outputs are {sorted(outputs)}")
        response = predict_pb2.PredictResponse()
        response.model_spec.name = name
        response.model_spec.version.value = version
        response.model_spec.signature_name = key
        for k in wanted:
            response.outputs[k].CopyFrom(tf.make_tensor_proto(outputs[k]))
        return response

    class PredictionService(
        prediction_service_pb2_grpc.PredictionServiceServicer
    ):
        def Predict(self, request, context):
            try:
                return predict(request)
            except Refused as error:
                context.abort(*error.args)
            except tf.errors.OpError as error:
                context.abort(invalid, error.message)

    return PredictionService()


def start_server(folder, name):
    """A server in this process, and its address."""
    import grpc
    from tensorflow_serving.apis import prediction_service_pb2_grpc

    server = grpc.server(concurrent.futures.ThreadPoolExecutor(4))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
        make_service(folder, name), server
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, f"127.0.0.1:{port}"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("name")
    arguments = parser.parse_args()
    server, address = start_server(arguments.folder, arguments.name)
    if "mtlkeras" in sys.modules:
        raise RuntimeError("The server must not need mtlkeras.")
    print(address, flush=True)
    sys.stdin.read()
    server.stop(grace=None).wait()


if __name__ == "__main__":
    main()
