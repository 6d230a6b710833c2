"""Every error that Geode raises on purpose.

    GeodeError                  base; the message says what was expected, what came, and what to do next
    ├── ModelNotFound           a name, file or directory that is not there
    ├── FormatError             a file that is truncated, corrupt, or not what its name says
    ├── ConfigError             an unknown family, an unhandled or impossible configuration key
    ├── TensorError             tensors missing, unexpected, mis-shaped, or not finite
    ├── TokenizerError          no tokenizer, or one of a kind that is not understood
    ├── ChatError               a chat template or a conversation that cannot be rendered
    ├── ContextError            more tokens than the model's context holds
    ├── OptionError             an argument outside its range
    │   └── LossError           a conversion that would lose something nobody asked to give up
    ├── ConversionError         what was written is not what was read
    ├── TuningError             a run that diverged, or cannot be gone on with
    ├── BackendError            a framework, dtype or accelerator that cannot be used as asked
    │   └── MissingExtra        an optional dependency that is not installed
    ├── CapacityError           not enough memory or disk for what was asked
    │   └── TooMany             too many ask at once, or one asks too often
    ├── DownloadError           the network, a registry, a licence gate or a checksum said no
    └── RemoteError             a server that computes for us refused, or cannot be reached

The command line prints the message as one paragraph and exits with `exit_code`; it knows nothing else of these classes.
"""


class GeodeError(Exception):
    """Base of all errors raised on purpose."""

    exit_code = 2


class ModelNotFound(GeodeError):
    """A model name, file or directory that does not exist."""


class FormatError(GeodeError):
    """A file whose bytes are not what its format promises."""


class ConfigError(GeodeError):
    """A configuration that no family here describes."""


class TensorError(GeodeError):
    """Weights that do not fit the configuration."""


class TokenizerError(GeodeError):
    """Text was given and no usable tokenizer is there."""


class ChatError(GeodeError):
    """A conversation that the chat template cannot render."""


class ContextError(GeodeError):
    """More tokens than the context holds; both numbers are in the message."""


class OptionError(GeodeError):
    """An argument outside its range."""


class LossError(OptionError):
    """A conversion would lose something; the message says what, and how to allow it."""


class ConversionError(GeodeError):
    """A written artefact was read back and is not the same model."""

    exit_code = 1


class TuningError(GeodeError):
    """A tuning run whose numbers are no longer any, or that cannot be gone on with as asked."""

    exit_code = 1


class BackendError(GeodeError):
    """A framework, dtype or device that cannot be used as asked."""


class MissingExtra(BackendError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str, purpose: str):
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed. "
            f"Install it with: pip install 'geode[{extra}]' (in a checkout: pip install -e '.[{extra}]')"
        )


class CapacityError(GeodeError):
    """Not enough memory or disk; `retry_after` seconds from now it may be otherwise, if known."""

    def __init__(self, message: str, retry_after: float | None = None):
        super().__init__(message)
        self.retry_after = retry_after


class TooMany(CapacityError):
    """More is asked than is taken in now."""


class DownloadError(GeodeError):
    """A download that cannot be finished."""


class RemoteError(GeodeError):
    """A model's server refused, hung up or cannot be reached; `status` is that of HTTP where there was one."""

    exit_code = 1

    def __init__(self, message: str, status: int | None = None):
        super().__init__(message)
        self.status = status
