"""What can go wrong, as one tree. Each message says what is wrong, where, and what to do.

    SeamcurateError
    ├── SourceError      a source cannot be read
    ├── RecipeError      a recipe cannot be run as it is written
    ├── StepError        a step lacks what it needs
    ├── ModelError       a model cannot be loaded or cannot answer
    ├── BudgetError      a run would cost more than its limit
    ├── StoreError       a store cannot be opened, read or written
    │   ├── StaleError       columns were made by another configuration
    │   ├── DamagedError     a shard's content changed after it was written
    │   └── BusyError        another run is writing to the store
    ├── QueryError       SQL that cannot be answered
    ├── ExportError      a split cannot be exported for a trainer
    ├── ClusterError     a Ray cluster cannot be used
    ├── TrainError       training cannot start or go on
    ├── StudyError       a study's input cannot be used
    └── HubError         the Hub cannot be reached, or its answer cannot be used

The user can correct all of them: the command line prints the message without a traceback and exits with 2.
"""


def first_line(error: BaseException) -> str:
    r"""Return the first line of an exception's message that is not blank, or the exception's type where all are.

    Example:
        >>> first_line(ValueError("no such column\nhint: rename one"))
        'no such column'
        >>> first_line(EOFError())
        'EOFError'
    """
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def typed_line(error: BaseException) -> str:
    """Return the first line of an exception's message behind the exception's type.

    Example:
        >>> typed_line(KeyError("rate"))
        "KeyError: 'rate'"
        >>> typed_line(EOFError())
        'EOFError'
    """
    kind, line = type(error).__name__, first_line(error)
    return line if line == kind else f"{kind}: {line}"


class SeamcurateError(Exception):
    """Catch every error that seamcurate raises on purpose.

    It is the root of the tree above. The message says what is wrong, where, and what to do; the command line prints it and
    exits with 2. Any other exception is a defect of seamcurate.

    Example:
        >>> from seamcurate import SeamcurateError, Store
        >>> try:
        ...     Store("no-such-folder").open()
        ... except SeamcurateError as error:
        ...     print(type(error).__name__)
        StoreError
    """


class SourceError(SeamcurateError):
    """A source cannot be read."""


class RecipeError(SeamcurateError):
    """A recipe cannot be run as it is written."""


class StepError(SeamcurateError):
    """A step lacks what it needs."""


class ModelError(SeamcurateError):
    """A model cannot be loaded or cannot answer."""


class BudgetError(SeamcurateError):
    """A run would cost more than its limit."""


class StoreError(SeamcurateError):
    """A store cannot be opened, read or written."""


class StaleError(StoreError):
    """Columns were made by another configuration."""


class DamagedError(StoreError):
    """A shard's content changed after it was written."""


class BusyError(StoreError):
    """Another run is writing to the store."""


class QueryError(SeamcurateError):
    """SQL that cannot be answered."""


class ExportError(SeamcurateError):
    """A split cannot be exported for a trainer."""


class ClusterError(SeamcurateError):
    """A Ray cluster cannot be used."""


class TrainError(SeamcurateError):
    """Training cannot start or go on."""


class StudyError(SeamcurateError):
    """A study's input cannot be used."""


class HubError(SeamcurateError):
    """The Hub cannot be reached, or its answer cannot be used."""
