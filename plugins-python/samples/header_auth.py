"""Lets a request through only if one of its headers has the right value; 403 otherwise.

    config: { header: user, value: admin }      # the default
"""

from palisade import Config, Plugin, Request, Verdict, allow, deny

plugin = Plugin("header-auth", version="0.1.0")


@plugin.filter
def check(request: Request, config: Config) -> Verdict:
    # Every line of that header must agree: with a second one, nobody knows which of them the upstream reads.
    values = request.headers.get_all(config.get("header", "user"))
    if values and all(value == config.get("value", "admin") for value in values):
        return allow()
    return deny(403, "forbidden\n")


if __name__ == "__main__":
    plugin.serve()
