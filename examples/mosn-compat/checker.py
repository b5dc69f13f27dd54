"""A plugin for MOSN's contract, `proto.Plugin/Call`, with plain grpcio: no SDK, no health service, one fixed TCP port.

    checker.py [-c checkconf.json] [-p 1234]

Denies (status -1) a request whose headers are not those of the configuration file.
"""

import argparse
import json
import sys
from concurrent import futures

import grpc
import plugin_pb2
import plugin_pb2_grpc


class Checker(plugin_pb2_grpc.PluginServicer):
    def __init__(self, wanted):
        self.wanted = wanted

    def Call(self, request, context):
        agrees = all(request.header.get(name) == value for name, value in self.wanted.items())
        return plugin_pb2.Response(status=1 if agrees else -1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("-c", "--config", default="checkconf.json", help="headers that a request needs, as JSON")
    parser.add_argument("-p", "--port", type=int, default=1234)
    arguments = parser.parse_args()
    with open(arguments.config, encoding="utf-8") as file:
        wanted = json.load(file)

    # Without the option, a second copy could open the same port, and the kernel would share out calls between the two.
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=10), options=[("grpc.so_reuseport", 0)])
    plugin_pb2_grpc.add_PluginServicer_to_server(Checker(wanted), server)
    address = f"127.0.0.1:{arguments.port}"
    server.add_insecure_port(address)
    server.start()

    # From this line the proxy learns where to connect. It is read from a pipe, so it has to be flushed.
    print(f"1|1|tcp|{address}|grpc")
    sys.stdout.flush()
    server.wait_for_termination()


if __name__ == "__main__":
    main()
