"""The sample filter `header_auth.py` as a coroutine."""

from palisade import Config, Plugin, Request, Verdict, allow, deny

plugin = Plugin("header-auth-async", version="0.1.0")


@plugin.filter
async def check(request: Request, config: Config) -> Verdict:
    values = request.headers.get_all(config.get("header", "user"))
    if values and all(value == config.get("value", "admin") for value in values):
        return allow()
    return deny(403, "forbidden\n")


if __name__ == "__main__":
    plugin.serve()
