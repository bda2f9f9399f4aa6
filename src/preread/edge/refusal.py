"""What is said of a request that cannot be taken as it is. Pure."""

from preread.errors import UsageError


class BadRequest(UsageError):
    """A request's body is not what the API takes. `param` is the path of the field, None where it is the whole body."""

    def __init__(self, message: str, param: str | None = None) -> None:
        self.param = param
        super().__init__(message)


def refuse(asked: object, param: str, message: str) -> None:
    """Raises BadRequest where a field asks for something: it is neither null, false, zero nor empty."""
    if asked:
        raise BadRequest(message, param)
