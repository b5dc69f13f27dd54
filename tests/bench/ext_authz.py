"""Envoy's ext_authz as grpcio serves it: lets a request with `user: admin` pass and answers 403 to others.

    ext_authz.py SOCKET
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from grpc_tools import protoc  # type: ignore[import-untyped]

HERE = Path(__file__).resolve().parent


def messages() -> Any:
    """The generated messages, as a server of this kind would have them."""
    with tempfile.TemporaryDirectory() as out:
        if protoc.main(["protoc", f"-I{HERE}", f"--python_out={out}", "ext_authz.proto"]) != 0:
            sys.exit("protoc failed")
        sys.path.insert(0, out)
        return importlib.import_module("ext_authz_pb2")


def main() -> None:
    pb = messages()
    denied = pb.DeniedHttpResponse(status=pb.HttpStatus(code=403), body="forbidden\n")

    def check(request: Any, context: grpc.ServicerContext) -> Any:
        if request.attributes.request.http.headers.get("user") == "admin":
            return pb.CheckResponse(status=pb.Status(code=0), ok_response=pb.OkHttpResponse())
        return pb.CheckResponse(status=pb.Status(code=7), denied_response=denied)

    method = grpc.unary_unary_rpc_method_handler(
        check,
        request_deserializer=pb.CheckRequest.FromString,
        response_serializer=pb.CheckResponse.SerializeToString,
    )
    server = grpc.server(ThreadPoolExecutor(max_workers=8))
    service = grpc.method_handlers_generic_handler("envoy.service.auth.v3.Authorization", {"Check": method})
    server.add_generic_rpc_handlers((service,))
    server.add_insecure_port(f"unix:{sys.argv[1]}")
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    main()
