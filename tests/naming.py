"""Names of parameters, the same in every process that collects the tests."""


def named(value: object) -> str:
    """How a value prints, without where it is in memory."""
    return str(value).split(" at 0x")[0]
