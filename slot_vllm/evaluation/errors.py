"""How a run ends that cannot go on; each is one line for a person."""

from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import BaseModel, ValidationError

from slot_vllm.validation_errors import describe


class ConfigError(ValueError):
    """Bad input of a run: one line that says what, where and what is allowed."""


class RunFailed(RuntimeError):
    """A run that failed for a reason which its input does not show."""


def one_line(error: BaseException) -> str:
    """What it says, without line ends."""
    return " ".join(str(error).split())


@contextmanager
def bad_input(said: str, *kinds: type[Exception]) -> Iterator[None]:
    """Raises ConfigError for an error of these kinds: ``said``, and what the error says."""
    try:
        yield
    except kinds as error:
        raise ConfigError(f"{said}: {one_line(error)}") from None


@contextmanager
def writing(where: object) -> Iterator[None]:
    """Raises ConfigError where the system does not let it be written."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{where}: cannot be written: {error.strerror}") from None


@contextmanager
def valid(model: type[BaseModel], where: str = "") -> Iterator[None]:
    """Raises ConfigError, which begins with ``where``, for values that are none of the model."""
    try:
        yield
    except ValidationError as error:
        raise ConfigError(f"{where}{describe(error, model)}") from None


@contextmanager
def of_file(path: object, *others: type[Exception]) -> Iterator[None]:
    """Puts the name of the file that asked for it before what a ConfigError says, or an error of
    these others."""
    kinds: tuple[type[Exception], ...] = (ConfigError, *others)
    try:
        yield
    except kinds as error:
        raise ConfigError(f"{path}: {error}") from error
